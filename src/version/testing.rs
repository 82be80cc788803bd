//! Tables and versions for tests, made by hand.
