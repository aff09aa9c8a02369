// SPDX-License-Identifier: GPL-2.0-only
//! Mount options: `parse_options` of `super.c`.

use core::fmt;

/// What protects the blocks that a direct overwrite was promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DioMode {
    /// `dioread_lock`: `i_mutex`, throughout.
    Exclusive,
    /// `dioread_nolock,dio_window=i_data_sem`: the count of I/O in flight, and `i_data_sem` for reading.
    IDataSem,
    /// `dioread_nolock,dio_window=in_flight`, the default: the count alone.
    #[default]
    InFlight,
}

/// What to do when the disk contradicts itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errors {
    /// Answer the call at hand with an error, and go on.
    #[default]
    Continue,
    /// Do the same and write nothing any more.
    RemountRo,
    /// PORT: Linux panics; here it is the same as [`Errors::RemountRo`], since an image must not stop the machine.
    Panic,
}

impl Errors {
    /// From `s_errors`; values that mean nothing are the default.
    pub fn from_super(s_errors: u16) -> Self {
        match s_errors {
            2 => Errors::RemountRo,
            3 => Errors::Panic,
            _ => Errors::Continue,
        }
    }
}

/// What of a file's data is on the device before the metadata that shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataMode {
    /// `data=ordered`: the data, always.
    #[default]
    Ordered,
    /// `data=writeback`: not necessarily.
    Writeback,
    /// `data=journal`: data go through the journal. PORT: they do not; they are ordered, and direct writes go through the page
    /// cache as they do in Linux.
    Journal,
}

/// Which access times are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Atime {
    /// `noatime`: none.
    No,
    /// `relatime`: when it is older than the last change, or a day old.
    #[default]
    Relative,
    /// `strictatime`: all.
    Strict,
}

/// `commit=` that stands for "as usual", in seconds: C's `JBD2_DEFAULT_MAX_COMMIT_AGE`.
pub const DEFAULT_COMMIT: u32 = 5;

/// The options of one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub rdonly: bool,
    /// `noatime`, `relatime`, `strictatime`.
    pub atime: Atime,
    /// `lazytime`. PORT: times alone are always kept that way.
    pub lazytime: bool,
    /// `noload`, `norecovery`: with `ro`, do not mind a journal that needs recovery.
    pub noload: bool,
    /// `dioread_lock`, `dioread_nolock`, `dio_window=`.
    pub dio: DioMode,
    /// `errors=`, if given.
    pub errors: Option<Errors>,
    /// `data=`, if given.
    pub data: Option<DataMode>,
    /// `commit=`: how old a transaction gets, in seconds; never 0.
    pub commit: u32,
    /// `barrier`, `nobarrier`: the device's cache is flushed where order counts.
    pub barrier: bool,
    /// `discard`: the device is told of blocks that were freed, when that is committed.
    pub discard: bool,
    /// `delalloc` was asked for, which there is not: blocks are allocated when they are written to the cache.
    pub delalloc: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            rdonly: false,
            atime: Atime::default(),
            lazytime: false,
            noload: false,
            dio: DioMode::default(),
            errors: None,
            data: None,
            commit: DEFAULT_COMMIT,
            barrier: true,
            discard: false,
            delalloc: false,
        }
    }
}

/// Why a string is no list of mount options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// There is no such option.
    Unknown(&'a str),
    /// The option does not take this value, or none, or any.
    Value(&'a str),
    /// The first option makes no sense with, or without, the second.
    Conflict(&'a str, &'a str),
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::Unknown(option) => write!(f, "unrecognized mount option \"{option}\""),
            OptionError::Value(option) => write!(f, "bad value in mount option \"{option}\""),
            OptionError::Conflict(option, with) => write!(f, "mount option \"{option}\" does not go with {with}"),
        }
    }
}

impl MountOptions {
    /// Parses options between commas. Of two that contradict each other the last counts, as ever
    /// with `mount`; but a `dio_window` that nothing would look at is an error.
    #[doc(alias = "parse_options")]
    pub fn parse(text: &str) -> Result<Self, OptionError<'_>> {
        Self::default().parse_over(text)
    }

    /// The options of a remount: what `text` does not speak of stays as it is.
    pub fn parse_over(mut self, text: &str) -> Result<Self, OptionError<'_>> {
        let mut nolock = self.dio != DioMode::Exclusive;
        let mut window = None;
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            match (name, value) {
                ("dioread_nolock", None) => nolock = true,
                ("dioread_lock", None) => nolock = false,
                ("dio_window", Some("i_data_sem")) => window = Some((option, DioMode::IDataSem)),
                ("dio_window", Some("in_flight")) => window = Some((option, DioMode::InFlight)),
                _ if self.flag_option(name, value) || self.value_option(name, value) => {}
                (name, _) if KNOWN.contains(&name) => return Err(OptionError::Value(option)),
                _ => return Err(OptionError::Unknown(option)),
            }
        }
        self.dio = match (nolock, window) {
            (true, None) if self.dio == DioMode::Exclusive => DioMode::InFlight,
            (true, None) => self.dio,
            (true, Some((_, mode))) => mode,
            (false, None) => DioMode::Exclusive,
            (false, Some((option, _))) => return Err(OptionError::Conflict(option, "dioread_lock")),
        };
        if self.noload && !self.rdonly {
            return Err(OptionError::Conflict("noload", "a mount that is not \"ro\""));
        }
        Ok(self)
    }

    /// Options that are a word. Whether it is one.
    fn flag_option(&mut self, name: &str, value: Option<&str>) -> bool {
        if value.is_some() {
            return false;
        }
        match name {
            "ro" => self.rdonly = true,
            "rw" => self.rdonly = false,
            "noatime" => self.atime = Atime::No,
            "relatime" | "norelatime" | "atime" => self.atime = Atime::Relative,
            "strictatime" => self.atime = Atime::Strict,
            "lazytime" => self.lazytime = true,
            "nolazytime" => self.lazytime = false,
            "noload" | "norecovery" => self.noload = true,
            "barrier" => self.barrier = true,
            "nobarrier" => self.barrier = false,
            "discard" => self.discard = true,
            "nodiscard" => self.discard = false,
            "delalloc" => self.delalloc = true,
            "nodelalloc" => self.delalloc = false,
            // What there is anyway, or is of no consequence.
            "defaults" | "user_xattr" | "journal_checksum" | "block_validity" | "auto_da_alloc" | "init_itable"
            | "noinit_itable" => {}
            _ => return false,
        }
        true
    }

    /// Options that have a value. Whether it is one, with a good value.
    fn value_option(&mut self, name: &str, value: Option<&str>) -> bool {
        match (name, value) {
            ("errors", Some("continue")) => self.errors = Some(Errors::Continue),
            ("errors", Some("remount-ro")) => self.errors = Some(Errors::RemountRo),
            ("errors", Some("panic")) => self.errors = Some(Errors::Panic),
            ("data", Some("ordered")) => self.data = Some(DataMode::Ordered),
            ("data", Some("writeback")) => self.data = Some(DataMode::Writeback),
            ("data", Some("journal")) => self.data = Some(DataMode::Journal),
            ("barrier", Some("0")) => self.barrier = false,
            ("barrier", Some("1")) => self.barrier = true,
            ("commit", Some(seconds)) => match seconds.parse() {
                Ok(0) => self.commit = DEFAULT_COMMIT,
                // More could not be counted in nanoseconds, or waited for.
                Ok(seconds @ 1..=MAX_COMMIT) => self.commit = seconds,
                _ => return false,
            },
            _ => return false,
        }
        true
    }
}

/// Largest `commit=`, in seconds: what Linux can count in clock ticks.
const MAX_COMMIT: u32 = i32::MAX as u32 / 1000;

/// Every option's name, to tell a bad value from a bad name.
const KNOWN: [&str; 30] = [
    "ro",
    "rw",
    "noatime",
    "relatime",
    "norelatime",
    "atime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "noload",
    "norecovery",
    "dioread_nolock",
    "dioread_lock",
    "dio_window",
    "errors",
    "data",
    "commit",
    "barrier",
    "nobarrier",
    "discard",
    "nodiscard",
    "delalloc",
    "nodelalloc",
    "defaults",
    "user_xattr",
    "journal_checksum",
    "block_validity",
    "auto_da_alloc",
    "init_itable",
    "noinit_itable",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(MountOptions::parse(""), Ok(MountOptions::default()));
        assert_eq!(MountOptions::parse(" , ,"), Ok(MountOptions::default()));
        assert_eq!(MountOptions::default().dio, DioMode::InFlight);
    }

    #[test]
    fn every_option_has_its_effect() {
        let parsed = |text| MountOptions::parse(text).expect("good options");
        assert!(parsed("rw,ro").rdonly && !parsed("ro,rw").rdonly);
        assert_eq!(parsed("relatime,noatime").atime, Atime::No);
        assert_eq!(parsed("noatime,relatime").atime, Atime::Relative);
        assert_eq!(parsed("strictatime").atime, Atime::Strict);
        assert!(parsed("lazytime").lazytime && !parsed("lazytime,nolazytime").lazytime);
        assert!(!parsed("nobarrier").barrier && !parsed("barrier=0").barrier);
        assert!(parsed("nobarrier,barrier").barrier && parsed("barrier=0,barrier=1").barrier);
        assert!(parsed("discard").discard && !parsed("discard,nodiscard").discard);
        assert!(parsed("delalloc").delalloc && !parsed("delalloc,nodelalloc").delalloc);
        assert_eq!(parsed("").commit, 5);
        assert_eq!(parsed("commit=0").commit, 5);
        assert_eq!(parsed("commit=30").commit, 30);
        assert_eq!(parsed("data=ordered").data, Some(DataMode::Ordered));
        assert_eq!(parsed("data=writeback").data, Some(DataMode::Writeback));
        assert_eq!(parsed("data=journal").data, Some(DataMode::Journal));
        assert_eq!(parsed("defaults,user_xattr,journal_checksum"), MountOptions::default());
        assert!(parsed("ro,noload").noload && parsed("norecovery,ro").noload);
        assert_eq!(parsed("dioread_lock").dio, DioMode::Exclusive);
        assert_eq!(parsed("dioread_nolock").dio, DioMode::InFlight);
        assert_eq!(parsed("dio_window=i_data_sem").dio, DioMode::IDataSem);
        assert_eq!(parsed("dio_window=i_data_sem,dioread_nolock").dio, DioMode::IDataSem);
        assert_eq!(parsed("dioread_nolock,dio_window=in_flight").dio, DioMode::InFlight);
        assert_eq!(parsed("errors=continue").errors, Some(Errors::Continue));
        assert_eq!(parsed("errors=remount-ro").errors, Some(Errors::RemountRo));
        assert_eq!(parsed("errors=panic").errors, Some(Errors::Panic));
    }

    #[test]
    fn errors_name_the_option() {
        assert_eq!(MountOptions::parse("ro,frob,rw"), Err(OptionError::Unknown("frob")));
        assert_eq!(MountOptions::parse("frob=1"), Err(OptionError::Unknown("frob=1")));
        assert_eq!(MountOptions::parse("ro=1"), Err(OptionError::Value("ro=1")));
        assert_eq!(MountOptions::parse("errors"), Err(OptionError::Value("errors")));
        for bad in ["commit=-1", "commit=x", "commit", "commit=4294967295", "data", "data=x", "barrier=2", "discard=1"]
        {
            assert_eq!(MountOptions::parse(bad), Err(OptionError::Value(bad)));
        }
        assert_eq!(MountOptions::parse("dio_window=x"), Err(OptionError::Value("dio_window=x")));
        assert_eq!(MountOptions::parse("noload"), Err(OptionError::Conflict("noload", "a mount that is not \"ro\"")));
        assert_eq!(
            MountOptions::parse("dio_window=in_flight,dioread_lock"),
            Err(OptionError::Conflict("dio_window=in_flight", "dioread_lock"))
        );
    }

    #[test]
    fn a_remount_changes_what_it_names() {
        let before = MountOptions::parse("noatime,commit=7,dio_window=i_data_sem,errors=panic").expect("good options");
        assert_eq!(before.parse_over(""), Ok(before));
        assert_eq!(before.parse_over("ro"), Ok(MountOptions { rdonly: true, ..before }));
        let after = before.parse_over("dioread_lock,commit=0").expect("good options");
        assert_eq!(after, MountOptions { dio: DioMode::Exclusive, commit: 5, ..before });
        assert_eq!(after.parse_over("dioread_nolock").map(|o| o.dio), Ok(DioMode::InFlight));
    }

    #[test]
    fn every_known_name_is_matched_by_the_parser() {
        for name in KNOWN {
            assert!(!matches!(MountOptions::parse(name), Err(OptionError::Unknown(_))), "{name}");
        }
    }
}
