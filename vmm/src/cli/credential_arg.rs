//! `--credential NAME=VALUE` and `--credential NAME:FILE`: what systemd in the guest hands to its services (systemd-creds(1)).

use std::{path::PathBuf, str::FromStr};

/// The argument of one `--credential`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialArg {
    /// What the guest knows it by.
    pub name: String,
    /// Where it comes from.
    pub value: CredentialValue,
}

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialValue {
    /// It was typed.
    Text(String),
    /// All of a file, which keeps it out of the list of processes.
    File(PathBuf),
}

/// The text is not a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialArgError {
    /// No value in it.
    #[error("'{0}' has no value: write NAME=VALUE, or NAME:FILE for what is in a file")]
    NoValue(String),
    /// No name that systemd takes.
    #[error(
        "'{0}' cannot name a credential: it is a file in the guest, so write letters, digits, '.', '-' and '_'"
    )]
    Name(String),
}

/// Names are those of files.
const LONGEST_NAME: usize = 255;

impl FromStr for CredentialArg {
    type Err = CredentialArgError;

    fn from_str(text: &str) -> Result<Self, CredentialArgError> {
        // A name has neither in it, so whichever comes first ends it.
        let end = text.find(['=', ':']);
        let end = end.ok_or_else(|| CredentialArgError::NoValue(text.to_owned()))?;
        let (name, value) = (&text[..end], &text[end + 1..]);
        let plain = |c: char| c.is_ascii_graphic() && c != '/';
        let is_name = (1..=LONGEST_NAME).contains(&name.len())
            && name.chars().all(plain)
            && name != "."
            && name != "..";
        if !is_name {
            return Err(CredentialArgError::Name(name.to_owned()));
        }
        let value = match text.as_bytes()[end] {
            b':' if value.is_empty() => return Err(CredentialArgError::NoValue(text.to_owned())),
            b':' => CredentialValue::File(value.into()),
            _ => CredentialValue::Text(value.to_owned()),
        };
        let name = name.to_owned();
        Ok(Self { name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_typed_or_in_a_file() {
        let of = |text: &str| {
            text.parse::<CredentialArg>()
                .map(|arg| (arg.name, arg.value))
        };
        let text = |value: &str| CredentialValue::Text(value.into());
        assert_eq!(of("a.b=c:d=e"), Ok(("a.b".into(), text("c:d=e"))));
        assert_eq!(of("a="), Ok(("a".into(), text(""))));
        let file = CredentialValue::File("/x=y".into());
        assert_eq!(of("key:/x=y"), Ok(("key".into(), file)));
        assert!(matches!(of("a:"), Err(CredentialArgError::NoValue(_))));
        assert!(matches!(of("a"), Err(CredentialArgError::NoValue(_))));
        for name in ["", "..", "a b", "a/b", "ä"] {
            let wrong = of(&format!("{name}=x"));
            assert!(matches!(wrong, Err(CredentialArgError::Name(_))), "{name}");
        }
    }
}
