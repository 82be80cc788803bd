//! The `nori` command.

fn main() {}
