//! What the guest reads in its SMBIOS tables, from what was typed.

use std::{fs::File, io::Read, path::Path};

use arch::{layout, smbios::SmbiosConfig};
use base64::{Engine, prelude::BASE64_STANDARD};

use super::RunError;
use crate::cli::{CredentialArg, CredentialValue, SmbiosArg, run::RunArgs};

pub(super) fn config(args: &RunArgs) -> Result<SmbiosConfig, RunError> {
    let mut config = SmbiosConfig::default();
    for arg in args.smbios.iter().cloned() {
        match arg {
            SmbiosArg::Manufacturer(text) => config.manufacturer = text,
            SmbiosArg::Product(text) => config.product = text,
            SmbiosArg::Version(text) => config.version = text,
            SmbiosArg::Serial(text) => config.serial = text,
            SmbiosArg::Sku(text) => config.sku = text,
            SmbiosArg::Family(text) => config.family = text,
            SmbiosArg::Uuid(uuid) => config.uuid = Some(uuid),
            SmbiosArg::Oem(text) => config.oem_strings.push(text),
        }
    }
    for CredentialArg { name, value } in &args.credential {
        let text = match value {
            CredentialValue::Text(text) => oem_string(name, text.as_bytes()),
            CredentialValue::File(path) => oem_string(name, &read(path)?),
        };
        config.oem_strings.push(text);
    }
    Ok(config)
}

/// As systemd looks for it (smbios-type-11(7)): as it is, or in Base64 where it is not plain text.
fn oem_string(name: &str, value: &[u8]) -> String {
    let plain = |byte: &u8| (b' '..=b'~').contains(byte);
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().all(plain) => format!("io.systemd.credential:{name}={text}"),
        _ => {
            let text = BASE64_STANDARD.encode(value);
            format!("io.systemd.credential.binary:{name}={text}")
        }
    }
}

/// All of a file that can fit, and enough of one that cannot to be refused.
fn read(path: &Path) -> Result<Vec<u8>, RunError> {
    let room = layout::SMBIOS_TABLE.end - layout::SMBIOS_TABLE.start;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(room).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(source) => Err(RunError::Credential {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_text_where_it_can_be_and_base64_otherwise() {
        assert_eq!(oem_string("a", b"b=c d"), "io.systemd.credential:a=b=c d");
        assert_eq!(oem_string("a", b""), "io.systemd.credential:a=");
        let binary = "io.systemd.credential.binary:a=eQo=";
        assert_eq!(oem_string("a", b"y\n"), binary);
        assert!(oem_string("a", &[0xff]).starts_with("io.systemd.credential.binary:"));
    }
}
