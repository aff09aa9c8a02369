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

/// The options of one mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub rdonly: bool,
    /// `noatime`. Otherwise `relatime`.
    pub noatime: bool,
    /// `lazytime`. Accepted because that is how times are kept anyway.
    pub lazytime: bool,
    /// `noload`, `norecovery`: with `ro`, do not mind a journal that needs recovery.
    pub noload: bool,
    /// `dioread_lock`, `dioread_nolock`, `dio_window=`.
    pub dio: DioMode,
    /// `errors=`, if given.
    pub errors: Option<Errors>,
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
        let mut options = Self::default();
        let mut nolock = true;
        let mut window = None;
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            match (name, value) {
                ("ro", None) => options.rdonly = true,
                ("rw", None) => options.rdonly = false,
                ("noatime", None) => options.noatime = true,
                ("relatime", None) => options.noatime = false,
                ("lazytime", None) => options.lazytime = true,
                ("noload" | "norecovery", None) => options.noload = true,
                ("dioread_nolock", None) => nolock = true,
                ("dioread_lock", None) => nolock = false,
                ("dio_window", Some("i_data_sem")) => window = Some((option, DioMode::IDataSem)),
                ("dio_window", Some("in_flight")) => window = Some((option, DioMode::InFlight)),
                ("errors", Some("continue")) => options.errors = Some(Errors::Continue),
                ("errors", Some("remount-ro")) => options.errors = Some(Errors::RemountRo),
                ("errors", Some("panic")) => options.errors = Some(Errors::Panic),
                (name, _) if KNOWN.contains(&name) => return Err(OptionError::Value(option)),
                _ => return Err(OptionError::Unknown(option)),
            }
        }
        options.dio = match (nolock, window) {
            (true, None) => DioMode::InFlight,
            (true, Some((_, mode))) => mode,
            (false, None) => DioMode::Exclusive,
            (false, Some((option, _))) => return Err(OptionError::Conflict(option, "dioread_lock")),
        };
        if options.noload && !options.rdonly {
            return Err(OptionError::Conflict("noload", "a mount that is not \"ro\""));
        }
        Ok(options)
    }
}

/// Every option's name, to tell a bad value from a bad name.
const KNOWN: [&str; 11] = [
    "ro",
    "rw",
    "noatime",
    "relatime",
    "lazytime",
    "noload",
    "norecovery",
    "dioread_nolock",
    "dioread_lock",
    "dio_window",
    "errors",
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
        assert!(parsed("relatime,noatime").noatime && !parsed("noatime,relatime").noatime);
        assert!(parsed("lazytime").lazytime);
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
        assert_eq!(MountOptions::parse("dio_window=x"), Err(OptionError::Value("dio_window=x")));
        assert_eq!(MountOptions::parse("noload"), Err(OptionError::Conflict("noload", "a mount that is not \"ro\"")));
        assert_eq!(
            MountOptions::parse("dio_window=in_flight,dioread_lock"),
            Err(OptionError::Conflict("dio_window=in_flight", "dioread_lock"))
        );
    }

    #[test]
    fn every_known_name_is_matched_by_the_parser() {
        for name in KNOWN {
            assert!(!matches!(MountOptions::parse(name), Err(OptionError::Unknown(_))), "{name}");
        }
    }
}
