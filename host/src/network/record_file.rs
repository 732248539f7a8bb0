//! One small JSON file per pod: old or new content, whole, also after a power cut.

use std::io;
use std::path::Path;

/// Of a file that is being written.
const HALF: &str = "new";

/// Writes `bytes` to `target`, a file of `directory`, durably.
pub(super) fn replace(directory: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    std::fs::create_dir_all(directory)?;
    let new = target.with_extension(HALF);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, target)?;
    std::fs::File::open(directory)?.sync_all()
}

/// Removes `target` and what a killed daemon left of a half-written one. Nothing there is success.
pub(super) fn remove(target: &Path) -> io::Result<()> {
    for path in [target.with_extension(HALF).as_path(), target] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `id` is safe as a file's name.
pub(super) fn is_plain(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.chars().all(plain)
}
