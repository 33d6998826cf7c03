use super::*;
use crate::render::tests::program;

#[test]
fn what_a_program_chose_stays_data() {
    let hostile = "</script><img src=x onerror=alert(1)><!--/*code*//*style*/";
    let page = String::from_utf8(render(&program(&[hostile], &[4096]))).unwrap();
    assert!(!page.contains("<img"), "markup from a name");
    assert_eq!(page.matches("</script>").count(), 2);
    // What follows the island is the page's own code, once.
    assert_eq!(page.matches("const SVG = ").count(), 1);
    assert_eq!(page.matches("--resident:").count(), 2);
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = String::from_utf8(render(&program(&["./main"], &[4096]))).unwrap();
    assert!(page.contains("default-src 'none'"));
    for place in [
        "src=\"",
        "href=\"",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "innerHTML",
    ] {
        assert!(!page.contains(place), "{place}");
    }
    // The name of SVG's namespace is no address that anybody asks.
    let addresses = page.matches("http://").count() + page.matches("https://").count();
    assert_eq!(addresses, 1);
}

#[test]
fn the_report_can_be_taken_out_again() {
    let report = program(&["./main"], &[4096, -4096]);
    let page = String::from_utf8(render(&report)).unwrap();
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (island, _) = rest.split_once("</script>").unwrap();
    let data: serde_json::Value = serde_json::from_str(island).unwrap();
    let again: Report = serde_json::from_value(data["report"].clone()).unwrap();
    assert_eq!(again, report);
}
