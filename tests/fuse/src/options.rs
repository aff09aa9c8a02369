// SPDX-License-Identifier: GPL-2.0-only
//! `-o`: words between commas, for the file system, for FUSE and the kernel, for this program, or for mount(8) alone.

use std::fmt;

use ext4_dio::sb_options::MountOptions;
use fuser::{MountOption, SessionACL};

/// Who caches pages of files that are open without `O_DIRECT`: see the head of the crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageCache {
    /// `page_cache=auto`: ours, if the kernel can map such files.
    #[default]
    Auto,
    /// `page_cache=ours`.
    Ours,
    /// `page_cache=kernel`.
    Kernel,
}

/// Threads that serve requests, if nothing else was asked for: as many direct writes are in the file system at once.
const THREADS: usize = 32;
/// More than anybody needs.
const MAX_THREADS: usize = 1024;

/// What a mount is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nothing is to be written.
    pub read_only: bool,
    /// Not even a journal that has to be replayed.
    pub noload: bool,
    /// The file system's options.
    pub ext4: String,
    /// The kernel's and fusermount's.
    pub mount: Vec<MountOption>,
    /// Whose requests are served.
    pub acl: SessionACL,
    /// What the mount is of, as `mount` and `df` show it.
    pub fsname: Option<String>,
    /// The type is `fuse.` and this.
    pub subtype: Option<String>,
    /// How many threads serve requests.
    pub threads: usize,
    /// Whose page cache is used.
    pub page_cache: PageCache,
}

/// Why a string is no list of options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionsError(String);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionsError {}

/// Words that tell mount(8) and its kind something, or what is the case anyway.
const NOISE: [&str; 27] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "loop",
    "mand",
    "nomand",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "diratime",
    "nodiratime",
    "default_permissions",
    "nonempty",
    "kernel_cache",
    "auto_cache",
    "big_writes",
    "intr",
    "hard_remove",
    "use_ino",
];

/// Words with a value that are noise, too.
const NOISE_WITH: [&str; 4] = ["comment", "uhelper", "helper", "max_read"];

impl Options {
    /// Parses words between commas; `sloppy`: what nobody knows is left out. The last of two that contradict each other counts.
    pub fn parse(text: &str, sloppy: bool) -> Result<Self, OptionsError> {
        let mut parsed = Self::default();
        let mut flags = Flags::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            if flags.take(word) {
                parsed.shared(word);
            } else if !parsed.own(name, value)? && !is_noise(name, value) {
                parsed.ext4(word, sloppy)?;
            }
        }
        let ext4 = MountOptions::parse(&parsed.ext4).map_err(|error| OptionsError(error.to_string()))?;
        (parsed.read_only, parsed.noload) = (ext4.rdonly, ext4.noload);
        flags.give(&mut parsed.mount);
        Ok(parsed)
    }

    /// Words that are the kernel's and the file system's.
    fn shared(&mut self, word: &str) {
        if matches!(word, "ro" | "rw" | "noatime" | "atime") {
            self.push_ext4(word);
        }
    }

    fn push_ext4(&mut self, word: &str) {
        if !self.ext4.is_empty() {
            self.ext4.push(',');
        }
        self.ext4.push_str(word);
    }

    /// Words of FUSE and of this program. Whether it is one.
    fn own(&mut self, name: &str, value: Option<&str>) -> Result<bool, OptionsError> {
        let bad = || OptionsError(format!("bad value in mount option \"{name}={}\"", value.unwrap_or_default()));
        match (name, value) {
            ("allow_other", None) => self.acl = SessionACL::All,
            ("allow_root", None) => self.acl = SessionACL::RootAndOwner,
            ("auto_unmount", None) => self.mount.push(MountOption::AutoUnmount),
            ("fsname", Some(fsname)) => self.fsname = Some(fsname.to_string()),
            ("subtype", Some(subtype)) => self.subtype = Some(subtype.to_string()),
            ("page_cache", Some("auto")) => self.page_cache = PageCache::Auto,
            ("page_cache", Some("ours")) => self.page_cache = PageCache::Ours,
            ("page_cache", Some("kernel")) => self.page_cache = PageCache::Kernel,
            ("threads", Some(n)) => {
                self.threads = n.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or_else(bad)?;
            }
            ("page_cache" | "threads" | "fsname" | "subtype", _) => return Err(bad()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whatever is left is the file system's, or nobody's.
    fn ext4(&mut self, word: &str, sloppy: bool) -> Result<(), OptionsError> {
        match MountOptions::parse(word) {
            // One that makes sense with others only is judged with them.
            Ok(_) | Err(ext4_dio::sb_options::OptionError::Conflict(..)) => self.push_ext4(word),
            Err(ext4_dio::sb_options::OptionError::Unknown(_)) if sloppy => {}
            Err(error) => return Err(OptionsError(error.to_string())),
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            noload: false,
            ext4: String::new(),
            mount: Vec::new(),
            acl: SessionACL::Owner,
            fsname: None,
            subtype: None,
            threads: THREADS,
            page_cache: PageCache::Auto,
        }
    }
}

fn is_noise(name: &str, value: Option<&str>) -> bool {
    match value {
        // What begins so is for scripts and fstab.
        _ if name.starts_with("x-") || name.starts_with("X-") => true,
        None => NOISE.contains(&name),
        Some(_) => NOISE_WITH.contains(&name),
    }
}

/// The kernel's words that have a contrary: the last of the two counts.
#[derive(Default)]
struct Flags {
    ro: Option<bool>,
    suid: Option<bool>,
    dev: Option<bool>,
    exec: Option<bool>,
    atime: Option<bool>,
    sync: bool,
}

impl Flags {
    /// Whether `word` is one.
    fn take(&mut self, word: &str) -> bool {
        match word {
            "ro" => self.ro = Some(true),
            "rw" => self.ro = Some(false),
            "suid" => self.suid = Some(true),
            "nosuid" => self.suid = Some(false),
            "dev" => self.dev = Some(true),
            "nodev" => self.dev = Some(false),
            "exec" => self.exec = Some(true),
            "noexec" => self.exec = Some(false),
            "atime" => self.atime = Some(true),
            "noatime" => self.atime = Some(false),
            "sync" => self.sync = true,
            "async" => self.sync = false,
            _ => return false,
        }
        true
    }

    /// What to tell the kernel. As for any other file system that root mounts set-user-ID and devices count, unless told otherwise;
    /// for all others fusermount leaves both out.
    fn give(&self, to: &mut Vec<MountOption>) {
        let root = nix::unistd::geteuid().is_root();
        to.push(if self.ro == Some(true) { MountOption::RO } else { MountOption::RW });
        to.push(if self.suid.unwrap_or(root) { MountOption::Suid } else { MountOption::NoSuid });
        to.push(if self.dev.unwrap_or(root) { MountOption::Dev } else { MountOption::NoDev });
        if self.exec == Some(false) {
            to.push(MountOption::NoExec);
        }
        if self.atime == Some(false) {
            to.push(MountOption::NoAtime);
        }
        if self.sync {
            to.push(MountOption::Sync);
        }
        to.push(MountOption::DefaultPermissions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Options {
        Options::parse(text, false).expect("good options")
    }

    #[test]
    fn each_goes_where_it_belongs() {
        let options =
            parsed("rw,dioread_lock,allow_other,fsname=/dev/loop0,subtype=ext4,nosuid,x-systemd.automount,_netdev");
        assert_eq!(options.ext4, "rw,dioread_lock");
        assert_eq!((options.acl, options.read_only), (SessionACL::All, false));
        assert_eq!((options.fsname.as_deref(), options.subtype.as_deref()), (Some("/dev/loop0"), Some("ext4")));
        assert!(options.mount.contains(&MountOption::NoSuid) && !options.mount.contains(&MountOption::Suid));
        assert!(options.mount.contains(&MountOption::DefaultPermissions));
    }

    #[test]
    fn the_last_of_two_counts() {
        let options = parsed("ro,suid,nodev,rw,nosuid,dev,noexec,exec,noatime,atime,sync,async");
        for gone in [MountOption::RO, MountOption::Suid, MountOption::NoDev, MountOption::NoExec, MountOption::NoAtime]
        {
            assert!(!options.mount.contains(&gone), "{gone:?}");
        }
        assert!(!options.mount.contains(&MountOption::Sync) && options.mount.contains(&MountOption::Dev));
        assert!(!options.read_only);
        let options = parsed("rw,ro");
        assert!(options.read_only && options.mount.contains(&MountOption::RO));
    }

    #[test]
    fn options_that_need_each_other_are_judged_together() {
        assert_eq!(parsed("noload,ro").ext4, "noload,ro");
        assert!(Options::parse("noload", false).is_err());
        assert_eq!(parsed("dio_window=i_data_sem,dioread_nolock").ext4, "dio_window=i_data_sem,dioread_nolock");
    }

    #[test]
    fn errors_name_the_option() {
        for bad in ["frob", "frob=1", "data=x", "commit=-1", "page_cache=x", "threads=0", "threads=x", "fsname", "ro=1"]
        {
            let error = Options::parse(&format!("defaults,{bad},noatime"), false).expect_err(bad).to_string();
            let name = bad.split('=').next().unwrap_or(bad);
            assert!(error.contains(name), "{bad}: {error}");
        }
        assert!(Options::parse("frob,frob=2", true).is_ok());
        assert!(Options::parse("data=x", true).is_err(), "sloppy is about names");
    }

    #[test]
    fn our_own() {
        let options = parsed("threads=64,page_cache=kernel");
        assert_eq!((options.threads, options.page_cache), (64, PageCache::Kernel));
        assert_eq!(parsed("").page_cache, PageCache::Auto);
    }
}
