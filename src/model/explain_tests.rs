//! glibc's arithmetic on made-up facts.
