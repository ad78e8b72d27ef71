//! Telling the service manager that the server is ready (`sd_notify(3)`): one datagram to the socket
//! that `NOTIFY_SOCKET` names. Without the variable nobody asked.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `READY=1`. Answers whether anybody asked for it.
pub fn ready() -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        None => Ok(false),
        Some(path) => send(path.as_encoded_bytes(), b"READY=1").map(|()| true),
    }
}

/// A name that begins with `@` is in the abstract namespace.
fn send(path: &[u8], message: &[u8]) -> io::Result<()> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => {
            use std::os::unix::ffi::OsStrExt;
            SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut message = vec![0; 64];
        let length = socket.recv(&mut message).unwrap();
        message.truncate(length);
        message
    }

    #[test]
    fn the_message_arrives_at_both_kinds_of_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_encoded_bytes(), b"READY=1").unwrap();
        assert_eq!(received(&socket), b"READY=1");

        let name = format!("keelson-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_bytes(), b"READY=1").unwrap();
        assert_eq!(received(&socket), b"READY=1");
    }
}
