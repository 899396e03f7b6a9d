//! Golden files: a format is frozen by the bytes of one example. `CARTWHEEL_WRITE_GOLDEN=1 cargo test`
//! writes the files of a new format; an existing format's file never changes.
#![allow(clippy::unwrap_used, clippy::panic)]

/// Compares `bytes` with `crates/core/golden/{name}`.
pub(crate) fn check(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("CARTWHEEL_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(golden == bytes, "the format of {name} changed: {bytes:02x?}");
    golden
}
