//! Which Debian archive to install from: the one this machine's own apt uses, so that a local mirror stays in use. Reads both
//! notations of sources.list(5). On another distribution there is usually none, and `$VIADUCT_LAB_MIRROR` has to name one.

use std::fs;
use std::path::Path;

use super::runner::System;
use crate::error::{Error, Result};

/// One archive of apt's sources.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    keyring: String,
}

/// Suites of the Debian archive by which it is recognised; security and update suites may live on other hosts.
const SUITES: [&str; 9] = [
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "stable",
    "testing",
    "unstable",
    "oldstable",
];

/// The archive's URI: `$VIADUCT_LAB_MIRROR`, else the best match among apt's sources.
pub(super) fn find(system: &System) -> Result<String> {
    match std::env::var("VIADUCT_LAB_MIRROR") {
        Ok(uri) if !uri.is_empty() => Ok(uri),
        _ => among(&read_all(Path::new("/etc/apt")), system),
    }
}

fn among(sources: &[Source], system: &System) -> Result<String> {
    pick(sources, system)
        .map(resolve)
        .ok_or_else(|| Error::Missing {
            what: format!(
                "the apt sources of this machine ({}) have no Debian archive to install the simulated host from",
                system.name
            ),
            fix: "name a Debian mirror by its URI:  VIADUCT_LAB_MIRROR=http://…/debian cargo lab image".into(),
        })
}

fn read_all(apt: &Path) -> Vec<Source> {
    let mut paths = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap_or_default();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(text.split("\n\n").filter_map(stanza)),
            Some("list") => sources.extend(text.lines().filter_map(line)),
            _ => {}
        }
    }
    sources
}

/// `deb [option=value ...] URI SUITE COMPONENT...`
fn line(text: &str) -> Option<Source> {
    let text = text.split('#').next()?.trim();
    let mut rest = text.strip_prefix("deb ")?.trim_start();
    let mut keyring = String::new();
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        let named = options
            .split_whitespace()
            .find_map(|word| word.strip_prefix("signed-by="));
        keyring = named.unwrap_or_default().to_owned();
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next()?;
    let suites = vec![words.next()?];
    Some(Source {
        uri,
        suites,
        components: words.collect(),
        keyring,
    })
}

/// A stanza of the deb822 notation.
fn stanza(text: &str) -> Option<Source> {
    let field = |name: &str| {
        let found = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim()
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            });
        found.unwrap_or_default()
    };
    let words = |name: &str| {
        field(name)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if field("Enabled").eq_ignore_ascii_case("no")
        || !words("Types").iter().any(|kind| kind == "deb")
    {
        return None;
    }
    let uri = words("URIs").into_iter().next()?;
    Some(Source {
        uri,
        suites: words("Suites"),
        components: words("Components"),
        keyring: field("Signed-By"),
    })
}

/// Others publish under Debian's suite names too (`stable main` is common), so the archive is the one that looks most like it.
/// One that looks like it by neither path nor key is it only on a Debian, and only for that Debian's own release.
fn pick<'a>(sources: &'a [Source], system: &System) -> Option<&'a Source> {
    let score = |source: &Source| {
        let has = |suite: &str| source.suites.iter().any(|one| one == suite);
        let known = SUITES.iter().any(|suite| has(suite));
        let main = source
            .components
            .iter()
            .any(|component| component == "main");
        let path = source.uri.trim_end_matches('/').ends_with("/debian");
        let key = source.keyring.contains("debian-archive");
        let own = system.is_debian() && has(&system.codename);
        (known && main && (path || key || own)).then_some(u8::from(path) + u8::from(key))
    };
    let scored = sources
        .iter()
        .filter_map(|source| Some((score(source)?, source)));
    // The first of the best: max_by_key would take the last.
    scored
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, source)| source)
}

/// Cloud images name a file that lists mirrors; its first line will do.
fn resolve(source: &Source) -> String {
    let Some(path) = source.uri.strip_prefix("mirror+file:") else {
        return source.uri.clone();
    };
    let path = format!("/{}", path.trim_start_matches('/'));
    let list = fs::read_to_string(path).unwrap_or_default();
    let first = list.split_whitespace().next().map(str::to_owned);
    first.unwrap_or_else(|| source.uri.clone())
}

#[cfg(test)]
mod tests {
    use super::super::runner::tests::{BOOKWORM, UBUNTU};
    use super::*;

    const STANZAS: &str = "Types: deb\n# a comment: with a colon\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn the_archive_is_picked_from_among_third_parties() {
        let mut sources: Vec<Source> = [
            "deb https://nodes.example/node_20.x nodistro main",
            "deb [arch=amd64 signed-by=/k.gpg] https://docker.example/linux/debian bookworm stable",
            "deb https://other.example/apt bookworm main",
        ]
        .into_iter()
        .filter_map(line)
        .collect();
        sources.extend(STANZAS.split("\n\n").filter_map(stanza));
        for system in [BOOKWORM, UBUNTU] {
            let picked = pick(&sources, &System::parse(system));
            assert_eq!(
                picked.map(|source| source.uri.as_str()),
                Some("http://mirror.example/debian")
            );
        }
    }

    /// What an Ubuntu 24.04 with a browser and Docker has.
    const UBUNTU_SOURCES: &str = "Types: deb\nURIs: http://mirror.example/ubuntu/\nSuites: noble noble-updates noble-backports\n\
        Components: main universe restricted multiverse\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n\n\
        Types: deb\nURIs: https://browser.example/linux/deb/\nSuites: stable\nComponents: main\n\n\
        Types: deb\nURIs: https://docker.example/linux/ubuntu\nSuites: noble\nComponents: stable\n";

    #[test]
    fn on_ubuntu_no_source_is_debians_and_the_error_names_the_variable() {
        let sources: Vec<Source> = UBUNTU_SOURCES.split("\n\n").filter_map(stanza).collect();
        assert_eq!(sources.len(), 3);
        let text = among(&sources, &System::parse(UBUNTU))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("Ubuntu 24.04.1 LTS") && text.contains("VIADUCT_LAB_MIRROR="),
            "{text}"
        );
    }

    #[test]
    fn a_mirror_with_an_unusual_path_is_taken_on_a_debian_of_that_release() {
        let sources = [line("deb http://apt.example/mirror bookworm main").unwrap()];
        assert!(pick(&sources, &System::parse(BOOKWORM)).is_some());
        assert!(pick(&sources, &System::parse(UBUNTU)).is_none());
        let browser = [line("deb http://browser.example/deb stable main").unwrap()];
        assert!(pick(&browser, &System::parse(BOOKWORM)).is_none());
    }

    #[test]
    fn the_one_line_notation_with_options_is_read() {
        let source = line(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m/debian trixie main contrib",
        );
        let source = source.unwrap();
        assert_eq!(
            (source.uri.as_str(), source.suites[0].as_str()),
            ("http://m/debian", "trixie")
        );
        assert_eq!(source.components, ["main", "contrib"]);
    }

    #[test]
    fn comments_sources_and_disabled_entries_are_no_archives() {
        assert_eq!(line("# deb http://m/debian trixie main"), None);
        assert_eq!(line("deb-src http://m/debian trixie main"), None);
        assert_eq!(
            stanza("Enabled: no\nTypes: deb\nURIs: http://m/debian\nSuites: sid\nComponents: main"),
            None
        );
        assert_eq!(pick(&[], &System::parse(BOOKWORM)), None);
    }
}
