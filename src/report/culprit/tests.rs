//! Whom the rules name.

use super::*;

/// The function that is named of a stack: `function module` or `function module source` from the innermost on; `?`
/// stands for a function that is not known, and `py:` begins one of Python.
#[track_caller]
fn named(stack: &[&str]) -> String {
    let parts: Vec<Vec<&str>> = stack
        .iter()
        .map(|line| line.split(" @ ").collect())
        .collect();
    let functions: Vec<Option<Function>> = parts
        .iter()
        .map(|parts| {
            (parts[0] != "?").then(|| Function {
                name: parts[0].trim_start_matches("py:").to_owned(),
                file: parts.get(2).map(|file| (*file).to_owned()),
                line: None,
            })
        })
        .collect();
    let entries: Vec<Entry<'_>> = parts
        .iter()
        .zip(&functions)
        .zip(0..)
        .map(|((parts, function), depth)| {
            let is_python = parts[0].starts_with("py:");
            Entry {
                depth,
                function: 0,
                named: function.as_ref(),
                module: parts.get(1).copied().unwrap_or(""),
                kind: (!is_python).then_some(ModuleKind::File),
                language: is_python.then_some("python"),
            }
        })
        .collect();
    let at = find(&entries).unwrap();
    parts[at][0].to_owned()
}

#[test]
fn what_glibc_does_for_malloc_is_passed_over_with_and_without_its_symbols() {
    assert_eq!(
        named(&[
            "__brk @ libc.so.6",
            "__sbrk @ libc.so.6",
            "__glibc_morecore @ libc.so.6",
            "sysmalloc @ libc.so.6",
            "_int_malloc @ libc.so.6",
            "__libc_malloc @ libc.so.6",
            "load @ a.out",
            "main @ a.out",
        ]),
        "load"
    );
    assert_eq!(
        named(&[
            "brk @ libc.so.6",
            "sbrk @ libc.so.6",
            "? @ libc.so.6",
            "? @ libc.so.6",
            "malloc @ libc.so.6",
            "load @ a.out",
        ]),
        "load"
    );
    assert_eq!(
        named(&["sysmalloc.part.0 @ libc.so.6", "? @ libc.so.6", "load @ a"]),
        "load"
    );
}

#[test]
fn a_library_function_that_needs_memory_itself_is_named_and_one_that_returns_it_is_not() {
    assert_eq!(
        named(&["malloc @ libc.so.6", "fopen64 @ libc.so.6", "main @ a"]),
        "fopen64"
    );
    assert_eq!(
        named(&["malloc @ libc.so.6", "strdup @ libc.so.6", "copy @ a"]),
        "copy"
    );
    assert_eq!(
        named(&[
            "mmap64 @ libc.so.6",
            "? @ libc.so.6",
            "pthread_create @ libc.so.6",
            "start @ a"
        ]),
        "start"
    );
    // A stream's buffer is for the one who wrote to it first, be it by printf.
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "_IO_file_doallocate @ libc.so.6",
            "_IO_new_file_overflow @ libc.so.6",
            "vfprintf @ libc.so.6",
            "printf @ libc.so.6",
            "report @ a",
            "main @ a"
        ]),
        "report"
    );
    assert_eq!(
        named(&[
            "mmap64 @ libc.so.6",
            "je_malloc @ libjemalloc.so.2",
            "_sdsnewlen @ redis-server",
            "createStringObject @ redis-server",
            "processMultibulkBuffer @ redis-server"
        ]),
        "processMultibulkBuffer"
    );
}

#[test]
fn inside_the_c_library_it_is_the_function_that_was_called() {
    assert_eq!(
        named(&[
            "__libc_malloc @ libc.so.6",
            "_nl_normalize_codeset @ libc.so.6",
            "_nl_find_locale @ libc.so.6",
            "setlocale @ libc.so.6",
            "main @ sort",
            "__libc_start_main_impl @ libc.so.6"
        ]),
        "setlocale"
    );
    // Also where it is the dynamic linker that works.
    assert_eq!(
        named(&[
            "__mmap64 @ ld-linux-x86-64.so.2",
            "_dl_map_segments @ ld-linux-x86-64.so.2",
            "_dl_catch_error @ libc.so.6",
            "___dlopen @ libc.so.6",
            "load_plugin @ a",
        ]),
        "___dlopen"
    );
    // Nobody called it.
    assert_eq!(
        named(&[
            "__mmap64 @ ld-linux-x86-64.so.2",
            "_dl_map_segments @ ld-linux-x86-64.so.2",
            "dl_main @ ld-linux-x86-64.so.2",
        ]),
        "_dl_map_segments"
    );
    // The stack of a thread, made and unmade.
    assert_eq!(
        named(&[
            "__mprotect @ libc.so.6",
            "setup_stack_prot @ libc.so.6",
            "allocate_stack @ libc.so.6",
            "__pthread_create_2_1 @ libc.so.6",
            "uv_thread_create_ex @ node"
        ]),
        "uv_thread_create_ex"
    );
    assert_eq!(
        named(&[
            "__munmap @ libc.so.6",
            "__nptl_free_stacks @ libc.so.6",
            "__pthread_clockjoin_ex @ libc.so.6",
            "join_all @ a"
        ]),
        "join_all"
    );
    // A function that a program gives to the C library is the program's.
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "compare @ a",
            "msort_with_tmp @ libc.so.6",
            "qsort_r @ libc.so.6",
            "main @ a"
        ]),
        "compare"
    );
}

#[test]
fn a_program_may_have_functions_named_as_the_c_librarys_inner_ones() {
    assert_eq!(
        named(&["malloc @ libc.so.6", "new_heap @ a.out", "main @ a.out"]),
        "new_heap"
    );
}

#[test]
fn containers_of_c_plus_plus_work_for_their_caller() {
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "operator new(unsigned long) @ libstdc++.so.6",
            "std::__new_allocator<Thing>::allocate(unsigned long, void const*) @ a @ /usr/include/c++/12/bits/new_allocator.h",
            "allocate @ a @ /usr/include/c++/12/bits/alloc_traits.h",
            "void std::vector<Thing, std::allocator<Thing> >::_M_realloc_insert<Thing>(__gnu_cxx::__normal_iterator<Thing*>, Thing&&) @ a",
            "Thing& std::vector<Thing, std::allocator<Thing> >::emplace_back<Thing>(Thing&&) @ a",
            "(anonymous namespace)::fill(int) @ a",
            "main @ a",
        ]),
        "(anonymous namespace)::fill(int)"
    );
    assert_eq!(
        named(&[
            "operator new[](unsigned long, std::align_val_t) @ libstdc++.so.6",
            "standard::work() @ a",
        ]),
        "standard::work()"
    );
}

#[test]
fn collections_of_rust_work_for_their_caller() {
    for path in [
        &[
            "alloc::raw_vec::RawVecInner<A>::grow_amortized @ a",
            "alloc::vec::Vec<T,A>::push @ a",
        ][..],
        &[
            "<alloc::alloc::Global as core::alloc::Allocator>::grow @ a",
            "<alloc::raw_vec::RawVec<u8>>::grow_one @ a",
        ],
        &[
            "<I as alloc::vec::SpecFromIter<T>>::from_iter @ a",
            "core::iter::traits::iterator::Iterator::collect @ a",
        ],
        &[
            "<hashbrown::raw::RawTable<(u32, u32)>>::reserve_rehash @ a",
            "<std::collections::hash::map::HashMap<u32, u32>>::insert @ a",
        ],
    ] {
        let mut stack = vec!["malloc @ libc.so.6", "__rustc::__rust_alloc @ a"];
        stack.extend(path);
        stack.extend([
            "<demo::Table as core::convert::From<u8>>::from @ a",
            "demo::main @ a",
        ]);
        assert_eq!(
            named(&stack),
            "<demo::Table as core::convert::From<u8>>::from",
            "{path:?}"
        );
    }
}

#[test]
fn the_start_of_a_rust_program_is_not_blamed_on_main() {
    assert_eq!(
        named(&[
            "__libc_malloc @ libc.so.6",
            "alloc::alloc::alloc @ a",
            "std::thread::Thread::new @ a",
            "std::rt::init @ a",
            "std::rt::lang_start_internal @ a",
            "main @ a",
        ]),
        "std::rt::init"
    );
}

#[test]
fn other_allocators_are_passed_over_whole_as_library_and_linked_in() {
    assert_eq!(
        named(&[
            "mmap @ libc.so.6",
            "? @ libjemalloc.so.2",
            "malloc @ libjemalloc.so.2",
            "f @ a"
        ]),
        "f"
    );
    assert_eq!(
        named(&["? @ libbreaktrace.so", "? @ libbreaktrace.so", "f @ a"]),
        "f"
    );
    assert_eq!(
        named(&[
            "os_pages_map @ redis-server",
            "je_pages_map @ redis-server",
            "extent_grow_retained @ redis-server",
            "je_malloc @ redis-server",
            "ztrymalloc_usable_internal @ redis-server",
            "zmalloc @ redis-server",
            "sdsnewlen @ redis-server",
        ]),
        "sdsnewlen"
    );
    assert_eq!(
        named(&[
            "mmap @ libc.so.6",
            "_mi_prim_alloc @ a",
            "mi_malloc @ a",
            "f @ a"
        ]),
        "f"
    );
}

#[test]
fn wrappers_that_many_programs_have_are_passed_over() {
    for wrapper in [
        "xmalloc",
        "do_xmalloc",
        "g_malloc0",
        "zcalloc",
        "sqlite3Malloc",
        "Perl_safesysmalloc",
        "_obstack_newchunk",
        "CRYPTO_zalloc",
        "palloc0",
        "uv__malloc",
    ] {
        let wrapper = format!("{wrapper} @ prog");
        assert_eq!(
            named(&["malloc @ libc.so.6", &wrapper, "f @ prog"]),
            "f",
            "{wrapper}"
        );
    }
    assert_eq!(
        named(&[
            "mmap @ libc.so.6",
            "ggc_internal_alloc @ cc1",
            "make_node @ cc1"
        ]),
        "make_node"
    );
    assert_eq!(
        named(&["mmap @ libc.so.6", "ggc_start @ other", "f @ other"]),
        "ggc_start"
    );
}

#[test]
fn in_python_it_is_the_python_function_unless_a_library_asked() {
    assert_eq!(
        named(&[
            "mmap @ libc.so.6",
            "? @ python3.11",
            "PyList_Append @ python3.11",
            "_PyEval_EvalFrameDefault @ python3.11",
            "py:load",
            "py:<module>",
            "Py_RunMain @ python3.11",
        ]),
        "py:load"
    );
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "PyObject_Malloc @ libpython3.12.so.1.0",
            "array_new @ _multiarray_umath.cpython-312-x86_64-linux-gnu.so",
            "_PyEval_EvalFrameDefault @ libpython3.12.so.1.0",
            "py:load",
        ]),
        "array_new"
    );
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "_PyMem_RawMalloc @ python3.11",
            "_PyRuntime_Initialize @ python3.11"
        ]),
        "_PyRuntime_Initialize"
    );
}

#[test]
fn what_python_does_for_objects_and_asks_of_the_c_library_is_the_python_functions() {
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "opendir @ libc.so.6",
            "os_scandir_impl @ python3.11",
            "_PyEval_EvalFrameDefault @ python3.11",
            "py:walk",
        ]),
        "py:walk"
    );
    assert_eq!(
        named(&[
            "munmap @ libc.so.6",
            "__libc_free @ libc.so.6",
            "Py_DECREF @ python3.11",
            "Py_XDECREF @ python3.11",
            "list_dealloc @ python3.11",
            "Py_FinalizeEx @ python3.11"
        ]),
        "list_dealloc"
    );
    assert_eq!(
        named(&[
            "mmap @ libc.so.6",
            "_PyObject_Malloc @ python3.11",
            "gc_alloc @ python3.11",
            "_PyObject_GC_New @ python3.11",
            "PyList_New @ python3.11",
            "_PyGC_Init @ python3.11"
        ]),
        "PyList_New"
    );
    // The collection of garbage calls what programs wrote.
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "PyObject_Malloc @ python3.11",
            "py:__del__",
            "gc_collect_main @ python3.11",
            "gc_alloc @ python3.11",
            "py:main",
        ]),
        "py:__del__"
    );
}

#[test]
fn operators_of_a_class_ask_for_memory_as_the_global_ones_do() {
    for operator in [
        "v8::internal::Malloced::operator new(unsigned long)",
        "Pool<int>::operator new[](unsigned long)",
        "(anonymous namespace)::Node::operator delete(void*)",
    ] {
        let operator = format!("{operator} @ a");
        assert_eq!(
            named(&["malloc @ libc.so.6", &operator, "make() @ a"]),
            "make()"
        );
    }
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "Text::operator newline() @ a",
            "f @ a"
        ]),
        "Text::operator newline()"
    );
}

#[test]
fn a_stripped_program_is_named_by_what_it_offers() {
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "? @ cc1",
            "toplev::main(int, char**) @ cc1",
            "main @ cc1"
        ]),
        "toplev::main(int, char**)"
    );
    assert_eq!(
        named(&[
            "malloc @ libc.so.6",
            "? @ a",
            "? @ a",
            "__libc_start_main @ libc.so.6"
        ]),
        "?"
    );
}

#[test]
fn a_stack_that_breaks_off_inside_malloc_names_its_outermost_function() {
    assert_eq!(named(&["sbrk @ libc.so.6", "malloc @ libc.so.6"]), "malloc");
    assert!(find(&[]).is_none());
}

#[test]
fn names_lose_what_is_not_theirs() {
    for (name, expected) in [
        ("malloc", "malloc"),
        ("sysmalloc.part.0", "sysmalloc"),
        ("operator new(unsigned long)", "operator new(unsigned long)"),
        (
            "void std::vector<int, std::allocator<int> >::push_back(int)",
            "std::vector<int, std::allocator<int> >::push_back",
        ),
        (
            "std::ostream& std::operator<< <char>(std::ostream&, char const*)",
            "std::operator<< <char>(std::ostream&, char const*)",
        ),
        (
            "(anonymous namespace)::pool::pool()",
            "(anonymous namespace)::pool::pool",
        ),
        (
            "main::{lambda(int)#1}::operator()(int) const",
            "main::{lambda(int)#1}::operator()(int) const",
        ),
        (
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "alloc::vec::Vec<T> as core::clone::Clone>::clone",
        ),
        (
            "<T as alloc::slice::Join>::join",
            "alloc::slice::Join>::join",
        ),
        (
            "<&mut demo::Thing as core::fmt::Debug>::fmt",
            "demo::Thing as core::fmt::Debug>::fmt",
        ),
        ("my_operator_x(int)", "my_operator_x"),
        ("", ""),
        ("<", ""),
        ("é<é(é", "é<é(é"),
    ] {
        assert_eq!(plain(name), expected, "{name}");
    }
}
