//! Lists of certificates that their authorities have revoked (RFC 5280, 5), as files.

use std::path::{Path, PathBuf};

use log::warn;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::{self, PemObject as _};
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode as _;
use x509_cert::time::Time;

use super::tls::TlsError;
use crate::clock::Clock;
use crate::config::ListenerTls;

/// What the library calls the content of the file.
const WHAT: &str = "the revoked certificates";

/// All lists in all files, each of which has to be `usable`.
pub(super) fn lists(
    files: &[PathBuf],
    usable: impl Fn(&CertificateRevocationListDer<'static>) -> Result<(), String>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let mut lists = Vec::new();
    for path in files {
        let found = read(path)?;
        if found.is_empty() {
            let source = pem::Error::NoItemsFound;
            return Err(TlsError::File { what: WHAT, path: path.clone(), source });
        }
        for list in found {
            usable(&list).map_err(|why| TlsError::Revocations { path: path.clone(), why })?;
            lists.push(list);
        }
    }
    Ok(lists)
}

fn read(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::File { what: WHAT, path: path.to_owned(), source };
    let lists = CertificateRevocationListDer::pem_file_iter(path).map_err(unreadable)?;
    lists.collect::<Result<Vec<_>, _>>().map_err(unreadable)
}

/// The lists that have ended by `clock`, each with its file and when that was. What cannot be read is left out.
pub fn ended_lists(files: &[PathBuf], clock: &Clock) -> Vec<(PathBuf, String)> {
    let now_s = u64::try_from(clock.now().wall_ms / 1000).unwrap_or(0);
    let mut ended = Vec::new();
    for path in files {
        for list in read(path).unwrap_or_default() {
            let Ok(list) = CertificateList::<Rfc5280>::from_der(&list) else { continue };
            if let Some(end) = list.tbs_cert_list.next_update.filter(|end| end.to_unix_duration().as_secs() < now_s) {
                ended.push((path.clone(), text(end)));
            }
        }
    }
    ended
}

fn text(time: Time) -> String {
    time.to_date_time().to_string()
}

/// For the journal, when the files are read.
pub(super) fn tell_ended(files: &ListenerTls, clock: &Clock) {
    let Some(client) = &files.client else { return };
    for (path, end) in ended_lists(&client.revoked, clock) {
        warn!(path:% = path.display(), end = end.as_str();
              "A list of revoked certificates has ended; it is used all the same, but says nothing of later ones");
    }
}
