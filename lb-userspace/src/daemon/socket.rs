//! The control socket's file.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use tokio::net::UnixListener;

/// Who may speak to ebb: the owner and the group.
const MODE: u32 = 0o660;

/// Group that gets the socket where it exists.
const GROUP: &str = "ebb";

/// Listens on `path`. A file that a dead daemon left is replaced; a living one is left alone.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    check_free(path)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Under a name of its own until its rights are set, so that nobody else can ever connect.
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = Path::new(&new);
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(new)?;
    fs::set_permissions(new, fs::Permissions::from_mode(MODE))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP)
        && let Err(error) = nix::unistd::chown(new, None, Some(group.gid))
    {
        tracing::warn!("the control socket could not be given to group {GROUP}: {error}");
    }
    fs::rename(new, path)?;
    Ok(listener)
}

fn check_free(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => {
            let why = format!(
                "{} belongs to another daemon, which is alive",
                path.display()
            );
            Err(io::Error::new(ErrorKind::AddrInUse, why))
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    }
}

/// Removes the file at the end.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("{} could not be removed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_file_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/ebb.sock");
        let first = listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        listen(&path).unwrap();
    }
}
