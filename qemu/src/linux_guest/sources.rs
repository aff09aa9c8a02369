// SPDX-License-Identifier: GPL-2.0-only
//! Where this machine gets its Debian packages from: apt's source lists, of both styles.

use std::fs;
use std::path::Path;

/// Debian's own name of all its mirrors.
pub const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// An archive that a source list names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub uri: String,
    /// Releases that are taken from it.
    pub suites: Vec<String>,
    /// Parts of these.
    pub components: Vec<String>,
}

/// Reads a list of one line per archive (`sources.list(5)`): `deb [options] uri suite component…`.
pub fn one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(source_of_line).collect()
}

fn source_of_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    // Options may hold blanks.
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_string);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { uri, suites: vec![suite], components: words.collect() })
}

/// Reads a list of stanzas (`deb822(5)`): `Types:`, `URIs:`, `Suites:`, `Components:`.
pub fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in stanzas(text) {
        let words = |name: &str| -> Vec<String> {
            let value = stanza.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.map(|(_, v)| v.split_whitespace().map(str::to_string).collect()).unwrap_or_default()
        };
        let off = words("Enabled").first().is_some_and(|v| ["no", "false", "0"].contains(&v.to_lowercase().as_str()));
        if off || !words("Types").iter().any(|t| t == "deb") {
            continue;
        }
        for uri in words("URIs") {
            sources.push(Source { uri, suites: words("Suites"), components: words("Components") });
        }
    }
    sources
}

/// The fields of each stanza, continued lines joined.
pub(super) fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut all: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in text.lines() {
        let last = all.len() - 1;
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with('#') {
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = all[last].last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            all[last].push((key.trim().into(), value.trim().into()));
        }
    }
    all.retain(|stanza| !stanza.is_empty());
    all
}

/// The first archive of Debian itself: not that of its security team, and nobody else's.
pub fn debian_mirror(sources: &[Source]) -> Option<&str> {
    let debian = |s: &&Source| {
        let path = s.uri.trim_end_matches('/');
        path.ends_with("/debian") && path.contains("://") && s.components.iter().any(|c| c == "main")
    };
    sources.iter().find(debian).map(|s| s.uri.as_str())
}

/// All of a machine's sources; `etc` is `/etc/apt`.
pub fn of_machine(etc: &Path) -> Vec<Source> {
    let mut files = vec![etc.join("sources.list")];
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().map(|e| e.path());
    let mut parts: Vec<_> = parts.collect();
    parts.sort();
    files.extend(parts);
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => sources.extend(one_line(&text)),
            Some("sources") => sources.extend(deb822(&text)),
            _ => {}
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a remark
URIs: https://packages.example.org/apt https://mirror.example.org/debian/
Suites: bookworm bookworm-updates
Components: main
  contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example.org/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example.org/debian
Suites: bookworm
Components: main
";

    #[test]
    fn stanzas_of_sources() {
        let s = deb822(DEB822);
        assert_eq!(s.len(), 2, "{s:?}");
        assert_eq!(s[1].uri, "https://mirror.example.org/debian/");
        assert_eq!(s[1].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(s[1].components, ["main", "contrib"]);
        assert_eq!(debian_mirror(&s), Some("https://mirror.example.org/debian/"));
    }

    #[test]
    fn lines_of_sources() {
        let text = "# deb http://old.example.org/debian sid main\ndeb-src http://x.example.org/debian sid main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://security.debian.org/debian-security trixie-security main\n\
                    deb\thttp://ftp.example.org/debian trixie main non-free # the nearest\ndeb broken\n";
        let s = one_line(text);
        assert_eq!(s.len(), 2, "{s:?}");
        assert_eq!(s[0].suites, ["trixie-security"]);
        assert_eq!(s[1].components, ["main", "non-free"]);
        assert_eq!(debian_mirror(&s), Some("http://ftp.example.org/debian"));
        assert_eq!(debian_mirror(&s[..1]), None);
    }

    #[test]
    fn both_styles_are_read_from_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        assert_eq!(of_machine(dir.path()), []);
        fs::write(dir.path().join("sources.list"), "deb http://a.example.org/other x main\n").unwrap();
        fs::write(dir.path().join("sources.list.d/debian.sources"), DEB822).unwrap();
        fs::write(dir.path().join("sources.list.d/debian.sources.save"), DEB822).unwrap();
        let s = of_machine(dir.path());
        assert_eq!(s.len(), 3);
        assert_eq!(debian_mirror(&s), Some("https://mirror.example.org/debian/"));
    }
}
