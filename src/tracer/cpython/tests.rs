use super::lines::LineTable;

#[test]
fn the_beginning_of_a_table_is_the_first_line() {
    assert_eq!(LineTable::Lnotab.line(&[], 7, 0), Some(7));
}
