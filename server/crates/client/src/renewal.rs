//! Certificates are renewed while a client runs: the files count as they are when a connection begins (Go:
//! `GetClientCertificate` of `client/pkg/transport/listener.go`; here the authorities, too).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use crate::config::TlsOptions;
use crate::error::Error;
use crate::tls::{self, Files};

/// Makes the settings of each connection.
pub(crate) struct RenewedTls {
    options: TlsOptions,
    protocol: &'static [u8],
    // A std mutex: held while files are compared, never across an await.
    made: Mutex<Made>,
}

/// What was made of files that could be used.
struct Made {
    files: Files,
    config: Arc<ClientConfig>,
    /// What was last told of files that cannot.
    complaint: Option<String>,
}

impl RenewedTls {
    /// Reads the files for the first time. What is spoken inside is HTTP of this version.
    pub(crate) fn new(options: TlsOptions, protocol: &'static [u8]) -> Result<Self, Error> {
        let (files, config) = make(&options, protocol)?;
        let made = Mutex::new(Made { files, config, complaint: None });
        Ok(Self { options, protocol, made })
    }

    /// Whose certificate is expected, instead of the endpoint's host.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.options.server_name.as_deref()
    }

    /// The settings of a connection that begins now: the last good ones, if the files cannot be used.
    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = match Files::read(&self.options) {
            Ok(files) if files == made.files => {
                made.complaint = None;
                return made.config.clone();
            }
            Ok(files) => tls::client_config(&self.options, &files, self.protocol)
                .map(|config| Made { files, config, complaint: None }),
            Err(error) => Err(error),
        };
        match renewed {
            Ok(renewed) => {
                tracing::info!("TLS files have changed and count from now on");
                *made = renewed;
            }
            Err(error) => {
                let complaint = Some(error.to_string());
                if made.complaint != complaint {
                    tracing::warn!(%error, "keeping the last good TLS files");
                    made.complaint = complaint;
                }
            }
        }
        made.config.clone()
    }
}

fn make(
    options: &TlsOptions,
    protocol: &'static [u8],
) -> Result<(Files, Arc<ClientConfig>), Error> {
    let files = Files::read(options)?;
    let config = tls::client_config(options, &files, protocol)?;
    Ok((files, config))
}

/// Keys are not shown.
impl fmt::Debug for RenewedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenewedTls").field("options", &self.options).finish_non_exhaustive()
    }
}
