// SPDX-License-Identifier: GPL-2.0-only
//! `BUG_ON` and `WARN_ON`: for what only a mistake in the code can bring about.
//!
//! Nothing that comes from a disk image or a caller may reach a [`bug_on!`](crate::bug_on): that is an error
//! return. A bug is a panic on every back end.

/// Panics if the condition holds, with the text that follows it, if any.
#[doc(alias = "BUG_ON")]
#[macro_export]
macro_rules! bug_on {
    ($cond:expr $(,)?) => {
        if $cond {
            ::core::panic!("BUG: {}", ::core::stringify!($cond));
        }
    };
    ($cond:expr, $($arg:tt)+) => {
        if $cond {
            ::core::panic!("BUG: {}", ::core::format_args!($($arg)+));
        }
    };
}

/// Logs a warning with the place if the condition holds, and says whether it did.
#[doc(alias = "WARN_ON")]
#[macro_export]
macro_rules! warn_on {
    ($cond:expr $(,)?) => {
        $crate::warn_on!($cond, "{}", ::core::stringify!($cond))
    };
    ($cond:expr, $($arg:tt)+) => {{
        let cond: bool = $cond;
        if cond {
            $crate::pr_warn!("WARNING: {}:{}: {}", ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+));
        }
        cond
    }};
}

/// [`warn_on!`] that logs only the first time; it still says each time whether the condition holds.
#[doc(alias = "WARN_ON_ONCE")]
#[macro_export]
macro_rules! warn_on_once {
    ($cond:expr $(,)?) => {
        $crate::warn_on_once!($cond, "{}", ::core::stringify!($cond))
    };
    ($cond:expr, $($arg:tt)+) => {{
        let cond: bool = $cond;
        if cond {
            $crate::do_once!($crate::warn_on!(true, $($arg)+));
        }
        cond
    }};
}

#[cfg(test)]
mod tests {
    #[test]
    fn warn_on_says_whether_it_held() {
        assert!(warn_on!(1 + 1 == 2));
        assert!(!warn_on!(1 + 1 == 3, "sum is {}", 2));
        for _ in 0..2 {
            assert!(warn_on_once!(true));
        }
    }

    #[test]
    #[should_panic(expected = "BUG: the sum is 2")]
    fn bug_on_panics() {
        bug_on!(1 + 1 == 2, "the sum is {}", 2);
    }
}
