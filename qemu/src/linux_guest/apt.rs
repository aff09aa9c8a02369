// SPDX-License-Identifier: GPL-2.0-only
//! Fetches Debian packages through an apt state of our own: the machine's package lists, and what is installed on it, are
//! neither used nor changed.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::sources;
use crate::deps::Missing;
use crate::proc;
use crate::session::Usage;

/// What signs Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Releases: the stable one, and what is newer for it.
const SUITES: &str = "trixie trixie-backports";
/// Package lists that are older are fetched again.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);
/// Longest that a download may take.
const LIMIT: Duration = Duration::from_secs(600);
/// Ends the names of the packages with the kernel that has what virtual machines need, and little else.
const FLAVOUR: &str = "-cloud-amd64";

/// A version of the kernel, as package names have it, such as `7.3.4+deb13`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Version, with what Debian adds to it.
    pub version: String,
    /// Packages that together hold its image and its modules.
    pub packages: Vec<String>,
}

/// A package that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Name of the file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
}

/// Numbers of a version, the rest left out.
fn numbers(version: &str) -> Vec<u64> {
    let upstream = version.split(['+', '-', '~']).next().unwrap_or("");
    upstream.split('.').map(|n| n.parse().unwrap_or(0)).collect()
}

fn order(a: &str, b: &str) -> Ordering {
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// Whether `version` is one of what the user calls `wanted`: 6.12 is 6.12.107, and not 6.1.
fn is_one_of(version: &str, wanted: &str) -> bool {
    version == wanted || numbers(version).starts_with(&numbers(wanted))
}

/// The newest kernel among the names of packages that can be fetched.
///
/// Its image may be in a package of its own, and its modules as well: that has changed over the years.
pub fn newest_kernel(names: &str, wanted: Option<&str>) -> Option<Kernel> {
    let mut best: Option<Kernel> = None;
    for name in names.lines() {
        let Some(rest) = name.trim().strip_suffix(FLAVOUR) else { continue };
        let kind = ["linux-image-", "linux-binary-", "linux-modules-"].into_iter().find_map(|k| rest.strip_prefix(k));
        let Some(version) = kind.filter(|v| v.starts_with(|c: char| c.is_ascii_digit())) else { continue };
        if wanted.is_some_and(|w| !is_one_of(version, w)) {
            continue;
        }
        let than_best = best.as_ref().map_or(Ordering::Greater, |b| order(version, &b.version));
        match (than_best, &mut best) {
            (Ordering::Less, _) => {}
            (Ordering::Equal, Some(best)) => best.packages.push(name.trim().into()),
            _ => best = Some(Kernel { version: version.into(), packages: vec![name.trim().into()] }),
        }
    }
    if let Some(best) = &mut best {
        best.packages.sort();
        best.packages.dedup();
    }
    best
}

/// What there is instead.
fn no_kernel(names: &str, wanted: Option<&str>, mirror: &str) -> Usage {
    let version = |n: &str| n.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR).map(str::to_string);
    let mut known: Vec<String> = names.lines().filter_map(version).collect();
    known.retain(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    known.sort_by(|a, b| order(b, a));
    Usage(format!(
        "there is no kernel {} in {SUITES} of {mirror}; there are {}",
        wanted.unwrap_or("at all"),
        known.join(", ")
    ))
}

/// Reads what `apt-get download --print-uris` prints: `'uri' file bytes hash`.
pub fn print_uris(text: &str) -> Vec<Download> {
    let download = |line: &str| {
        let rest = line.strip_prefix('\'')?.split_once("' ")?.1;
        let mut words = rest.split(' ');
        Some(Download { file: words.next()?.into(), bytes: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(download).collect()
}

/// apt with a state of its own.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    mirror: String,
}

impl Apt {
    /// Makes the state in `dir`, if it is not there.
    ///
    /// # Errors
    ///
    /// There is no apt here, or it cannot know Debian's signature; the directory cannot be written.
    pub fn new(dir: &Path) -> Result<Apt> {
        let missing: Vec<&str> =
            ["apt-get", "apt-cache", "dpkg-deb"].into_iter().filter(|p| proc::find_program(p).is_none()).collect();
        if !missing.is_empty() {
            bail!(Missing {
                what: missing.join(", "),
                why: "Linux for the comparison comes in Debian's packages",
                packages: "apt dpkg".into(),
            });
        }
        if !Path::new(KEYRING).exists() {
            bail!(Missing {
                what: KEYRING.into(),
                why: "Debian's packages are not to be trusted without it",
                packages: "debian-archive-keyring".into(),
            });
        }
        let sources = sources::of_machine(Path::new("/etc/apt"));
        let mirror = sources::debian_mirror(&sources).unwrap_or_else(|| {
            eprintln!("this machine's apt knows no mirror of Debian: using {}", sources::DEFAULT_MIRROR);
            sources::DEFAULT_MIRROR
        });
        let apt = Apt { dir: dir.into(), mirror: mirror.into() };
        apt.write_state().with_context(|| format!("cannot write {}", dir.display()))?;
        Ok(apt)
    }

    fn write_state(&self) -> Result<()> {
        for sub in ["lists/partial", "cache/archives/partial", "sources", "parts", "debs"] {
            fs::create_dir_all(self.dir.join(sub))?;
        }
        let sources = format!(
            "Types: deb\nURIs: {}\nSuites: {SUITES}\nComponents: main\nArchitectures: amd64\nTargets: Packages\n\
             Signed-By: {KEYRING}\n",
            self.mirror
        );
        fs::write(self.dir.join("sources/debian.sources"), sources)?;
        // The machine's settings hold hooks that clean its own caches. How to reach the network is all we want of them.
        let dump = proc::tool("apt-config").and_then(|mut cmd| {
            cmd.args(["dump", "Acquire"]);
            proc::succeed(cmd, LIMIT)
        });
        fs::write(self.dir.join("apt.conf"), self.config(&dump.unwrap_or_default()))?;
        Ok(())
    }

    /// apt's settings; `dump` is the machine's `apt-config dump Acquire`.
    fn config(&self, dump: &str) -> String {
        let at = |sub: &str| self.dir.join(sub).display().to_string();
        let mut text = String::new();
        for (key, value) in [
            ("Dir::Etc::main", "/dev/null".into()),
            ("Dir::Etc::parts", at("parts")),
            ("Dir::Etc::sourcelist", "/dev/null".into()),
            ("Dir::Etc::sourceparts", at("sources")),
            ("Dir::State::lists", at("lists")),
            ("Dir::Cache", at("cache")),
            ("APT::Architecture", "amd64".into()),
            // Its own user may not be let into this directory.
            ("APT::Sandbox::User", "root".into()),
        ] {
            text += &format!("{key} \"{value}\";\n");
        }
        for line in dump.lines().filter(|l| l.starts_with("Acquire::")) {
            text += line;
            text.push('\n');
        }
        // Last, so that nothing waits for long.
        text += "APT::Update::Error-Mode \"any\";\nAcquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\n\
                 Acquire::https::Timeout \"20\";\nAcquire::Languages \"none\";\n";
        text
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut cmd = proc::tool(program)?;
        cmd.env("APT_CONFIG", self.dir.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        cmd.args(args).current_dir(self.dir.join("debs"));
        Ok(cmd)
    }

    /// Sees to it that there are package lists, and that they are not too old.
    ///
    /// # Errors
    ///
    /// The mirror does not answer, and there are no lists.
    pub fn update(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        let age = fs::metadata(&stamp).and_then(|m| m.modified()).ok();
        let age = age.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        let source = fs::read_to_string(&stamp).unwrap_or_default();
        if source == self.mirror && age.is_some_and(|a| a < LISTS_AGE) {
            return Ok(());
        }
        eprintln!("fetching the package lists of {SUITES} from {} into {}", self.mirror, self.dir.display());
        let out = proc::capture(self.command("apt-get", &["update", "-q"])?, LIMIT)?;
        if out.status.success() {
            fs::write(&stamp, &self.mirror).with_context(|| format!("cannot write {}", stamp.display()))?;
            return Ok(());
        }
        if age.is_some() {
            eprintln!(
                "{} does not answer: going on with lists of {} s ago",
                self.mirror,
                age.unwrap_or_default().as_secs()
            );
            return Ok(());
        }
        bail!(
            "cannot fetch Debian's package lists from {}: is there a network? apt-get update said:\n{}",
            self.mirror,
            out.text.trim_end()
        )
    }

    /// The newest kernel there is, or the newest one that is a `wanted`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn kernel(&self, wanted: Option<&str>) -> Result<Kernel> {
        let names = proc::succeed(self.command("apt-cache", &["pkgnames", "linux-"])?, LIMIT)?;
        newest_kernel(&names, wanted).ok_or_else(|| no_kernel(&names, wanted, &self.mirror).into())
    }

    /// Fetches packages that are not here yet, saying which; their files.
    ///
    /// # Errors
    ///
    /// No network, no space, or a package that does not arrive whole.
    pub fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        let mut args = vec!["download", "-q", "--print-uris"];
        args.extend(packages.iter().map(String::as_str));
        let mut list = self.command("apt-get", &args)?;
        // It leaves out what lies where it runs.
        list.current_dir(self.dir.join("parts"));
        let uris = print_uris(&proc::succeed(list, LIMIT)?);
        ensure!(uris.len() == packages.len(), "apt-get does not know where all of {} are", packages.join(" "));
        let debs = self.dir.join("debs");
        let whole = |d: &Download| fs::metadata(debs.join(&d.file)).is_ok_and(|m| m.len() == d.bytes);
        let missing: Vec<&Download> = uris.iter().filter(|d| !whole(d)).collect();
        if !missing.is_empty() {
            let bytes: u64 = missing.iter().map(|d| d.bytes).sum();
            let list: Vec<String> =
                missing.iter().map(|d| format!("{} ({:.1} MB)", d.file, d.bytes as f64 / 1e6)).collect();
            eprintln!("fetching {} from {}", list.join(", "), self.mirror);
            let stat = rustix::fs::statvfs(&debs).with_context(|| format!("cannot look at {}", debs.display()))?;
            // Packed, unpacked, and the modules a second time while they are unpacked.
            let need = bytes * 6;
            ensure!(
                stat.f_bavail * stat.f_frsize >= need,
                "no {} MB free in {} for the packages and what is in them",
                need / 1_000_000,
                debs.display()
            );
            let mut args = vec!["download", "-q"];
            args.extend(packages.iter().map(String::as_str));
            if let Err(e) = proc::succeed(self.command("apt-get", &args)?, LIMIT) {
                // The lists may name what is no longer there: next time they are fetched anew.
                let _ = fs::remove_file(self.dir.join("updated"));
                return Err(e.context(format!("cannot fetch packages from {}: is there a network?", self.mirror)));
            }
        }
        if let Some(part) = uris.iter().find(|d| !whole(d)) {
            bail!("{} did not arrive whole from {}", part.file, self.mirror);
        }
        Ok(uris.iter().map(|d| debs.join(&d.file)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-6.12.94+deb13-cloud-amd64\nlinux-image-6.12.107+deb13-cloud-amd64\n\
        linux-image-6.12.107+deb13-cloud-amd64-unsigned\nlinux-image-cloud-amd64\nlinux-image-7.3.4+deb13-amd64\n\
        linux-modules-7.3.4+deb13-cloud-amd64\nlinux-binary-7.3.4+deb13-cloud-amd64\n\
        linux-binary-unsigned-7.3.4+deb13-cloud-amd64\nlinux-image-7.3.4+deb13-cloud-amd64\n\
        linux-image-7.3.4+deb13-cloud-amd64-dbg\nlinux-binary-7.0.13+deb13-cloud-amd64\nlinux-headers-9.9.9-cloud-amd64\n\
        linux-image-7.0.13+deb13-cloud-amd64\n";

    #[test]
    fn the_newest_kernel_and_all_of_its_packages() {
        let k = newest_kernel(NAMES, None).unwrap();
        assert_eq!(k.version, "7.3.4+deb13");
        let want = ["linux-binary-7.3.4+deb13-cloud-amd64", "linux-image-7.3.4+deb13-cloud-amd64"];
        assert_eq!(k.packages[..2], want);
        assert_eq!(k.packages[2], "linux-modules-7.3.4+deb13-cloud-amd64");
        let k = newest_kernel(NAMES, Some("6.12")).unwrap();
        assert_eq!(k.packages, ["linux-image-6.12.107+deb13-cloud-amd64"]);
        assert_eq!(newest_kernel(NAMES, Some("6.12.94")).unwrap().version, "6.12.94+deb13");
        assert_eq!(newest_kernel(NAMES, Some("7.3.4+deb13")).unwrap().version, "7.3.4+deb13");
        assert_eq!(newest_kernel(NAMES, Some("7")).unwrap().version, "7.3.4+deb13");
        assert_eq!(newest_kernel(NAMES, Some("6.1")), None);
        assert_eq!(newest_kernel("", None), None);
        let e = no_kernel(NAMES, Some("5.4"), "http://m").to_string();
        assert!(
            e.contains("no kernel 5.4") && e.ends_with("7.3.4+deb13, 7.0.13+deb13, 6.12.107+deb13, 6.12.94+deb13"),
            "{e}"
        );
    }

    #[test]
    fn what_is_fetched_is_known_beforehand() {
        let text = "NOTE: hello\n'http://m/debian/pool/b_1%3a1_amd64.deb' busybox-static_1%3a1.37_amd64.deb 955316 SHA256:00\n'x\n";
        let want = [Download { file: "busybox-static_1%3a1.37_amd64.deb".into(), bytes: 955_316 }];
        assert_eq!(print_uris(text), want);
        assert_eq!(print_uris(""), []);
    }

    #[test]
    fn the_machines_settings_are_left_out_but_for_the_way_to_the_network() {
        let apt = Apt { dir: "/c".into(), mirror: "http://m/debian".into() };
        let text = apt
            .config("Acquire \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAPT::Update::Post-Invoke:: \"rm x\";\n");
        assert!(text.contains("Acquire::http::Proxy \"http://p:3128\";\n"), "{text}");
        assert!(text.contains("Dir::State::lists \"/c/lists\";\n"), "{text}");
        assert!(!text.contains("rm x"), "{text}");
    }

    #[test]
    fn a_state_of_its_own_knows_the_machines_mirror() {
        let dir = tempfile::tempdir().unwrap();
        let apt = Apt { dir: dir.path().join("apt"), mirror: "http://m.example.org/debian".into() };
        apt.write_state().unwrap();
        let text = fs::read_to_string(dir.path().join("apt/sources/debian.sources")).unwrap();
        assert!(text.contains("URIs: http://m.example.org/debian\n"), "{text}");
        assert!(dir.path().join("apt/debs").is_dir());
    }
}
