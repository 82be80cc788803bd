//! Laws of versions.
