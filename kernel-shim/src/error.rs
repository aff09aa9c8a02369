// SPDX-License-Identifier: GPL-2.0-only
//! Errors as the kernel has them: a negative errno that is never zero, and [`Result`] over it.
//!
//! The shape is `kernel::error`'s. The numbers are those of Linux's user-space ABI
//! (`errno-base.h`, `errno.h`) and, above 511, of its internal list.

use core::fmt;
use core::num::NonZeroI32;

/// A kernel error: an errno between -4095 and -1.
///
/// # Invariants
///
/// `-MAX_ERRNO <= self.0 <= -1`, so that an error survives a trip through a C pointer or `ssize_t`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error(NonZeroI32);

/// What a kernel function returns; `E` is [`Error`] unless said otherwise.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// The largest errno that the kernel's error pointers can carry.
pub const MAX_ERRNO: i32 = 4095;

impl Error {
    /// The error for a negative `errno`. What is no valid errno becomes `EINVAL`: a wrong number
    /// from outside must not turn into success.
    pub const fn from_errno(errno: i32) -> Error {
        if errno < -MAX_ERRNO || errno >= 0 {
            return code::EINVAL;
        }
        // INVARIANT: checked just above.
        match NonZeroI32::new(errno) {
            Some(errno) => Error(errno),
            None => code::EINVAL,
        }
    }

    /// The errno, negative.
    pub const fn to_errno(self) -> i32 {
        self.0.get()
    }
}

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// The error codes, by the names that C gives them.
        pub mod code {
            use super::{Error, NonZeroI32};
            $(
                #[doc = $text]
                // INVARIANT: every number in the table lies between 1 and MAX_ERRNO.
                pub const $name: Error = Error(match NonZeroI32::new(-$value) {
                    Some(errno) => errno,
                    None => unreachable!(),
                });
            )*
            /// Same number as `EAGAIN`.
            pub const EWOULDBLOCK: Error = EAGAIN;
            /// On-disk structures contradict each other; ext4's and XFS's name for `EUCLEAN`.
            pub const EFSCORRUPTED: Error = EUCLEAN;
            /// A checksum does not match; ext4's and XFS's name for `EBADMSG`.
            pub const EFSBADCRC: Error = EBADMSG;
        }

        impl Error {
            /// The code's name, if it is one of those in [`code`].
            pub const fn name(self) -> Option<&'static str> {
                match -self.to_errno() {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such file or directory.";
    ESRCH = 3, "No such process.";
    EINTR = 4, "Interrupted by a signal.";
    EIO = 5, "I/O error.";
    ENXIO = 6, "No such device or address; also a seek beyond the last data.";
    E2BIG = 7, "Argument list too long.";
    ENOEXEC = 8, "Not an executable.";
    EBADF = 9, "Bad file descriptor.";
    ECHILD = 10, "No child processes.";
    EAGAIN = 11, "Try again; it would have slept.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "Bad address in the caller's memory.";
    ENOTBLK = 15, "Not a block device; inside direct I/O: do it through the page cache instead.";
    EBUSY = 16, "Device or resource busy.";
    EEXIST = 17, "File exists.";
    EXDEV = 18, "Link across file systems.";
    ENODEV = 19, "No such device.";
    ENOTDIR = 20, "Not a directory.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    ENFILE = 23, "Too many open files in the system.";
    EMFILE = 24, "Too many open files in the process.";
    ENOTTY = 25, "No such ioctl.";
    ETXTBSY = 26, "Text file busy; also a swap file.";
    EFBIG = 27, "File too large.";
    ENOSPC = 28, "No space left on the device.";
    ESPIPE = 29, "Not seekable.";
    EROFS = 30, "Read-only file system.";
    EMLINK = 31, "Too many links.";
    EPIPE = 32, "Broken pipe.";
    EDOM = 33, "Argument out of the function's domain.";
    ERANGE = 34, "Result does not fit.";
    EDEADLK = 35, "It would deadlock.";
    ENAMETOOLONG = 36, "File name too long.";
    ENOLCK = 37, "No locks left.";
    ENOSYS = 38, "Function not implemented.";
    ENOTEMPTY = 39, "Directory not empty.";
    ELOOP = 40, "Too many symbolic links.";
    EBADR = 53, "Unknown flags in a request.";
    ENODATA = 61, "No data; also no such extended attribute.";
    ETIME = 62, "Timer expired.";
    EBADMSG = 74, "Bad message; in file systems a checksum that does not match.";
    EOVERFLOW = 75, "Value too large for its type.";
    EILSEQ = 84, "Illegal byte sequence.";
    EOPNOTSUPP = 95, "Operation not supported.";
    ETIMEDOUT = 110, "Timed out.";
    EALREADY = 114, "Already in progress.";
    ESTALE = 116, "Stale file handle.";
    EUCLEAN = 117, "Structure needs cleaning.";
    EREMOTEIO = 121, "Remote I/O error.";
    EDQUOT = 122, "Quota exceeded.";
    ECANCELED = 125, "Cancelled.";
    ERESTARTSYS = 512, "Internal: restart the system call after a signal.";
    ENOTSUPP = 524, "Internal: operation not supported.";
    EIOCBQUEUED = 529, "Internal: the kiocb is queued and will be completed.";
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.to_errno()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Error {}

impl From<fmt::Error> for Error {
    fn from(_: fmt::Error) -> Error {
        code::EINVAL
    }
}

impl From<core::num::TryFromIntError> for Error {
    fn from(_: core::num::TryFromIntError) -> Error {
        code::EINVAL
    }
}

impl From<core::str::Utf8Error> for Error {
    fn from(_: core::str::Utf8Error) -> Error {
        code::EINVAL
    }
}

#[cfg(feature = "host")]
impl From<std::io::Error> for Error {
    /// The host's errno; `EIO` for an error that has none.
    fn from(error: std::io::Error) -> Error {
        match error.raw_os_error() {
            Some(errno) if errno > 0 => Error::from_errno(-errno),
            _ => code::EIO,
        }
    }
}

#[cfg(feature = "host")]
impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::from_raw_os_error(-error.to_errno())
    }
}

// `Result` is as wide as an errno: errors travel in registers.
static_assertions::assert_eq_size!(Result<()>, i32);
static_assertions::assert_eq_size!(Option<Error>, i32);

#[cfg(test)]
mod tests {
    use super::{Error, code::*};
    use std::format;

    #[test]
    fn numbers_and_names() {
        assert_eq!(ENOMEM.to_errno(), -12);
        assert_eq!(EFSCORRUPTED.to_errno(), -117);
        assert_eq!(EFSBADCRC.to_errno(), -74);
        assert_eq!(EIOCBQUEUED.to_errno(), -529);
        assert_eq!(EIOCBQUEUED.name(), Some("EIOCBQUEUED"));
        assert_eq!(format!("{:?} {}", ENOSPC, Error::from_errno(-999)), "ENOSPC errno -999");
    }

    #[test]
    fn what_is_no_errno_becomes_einval() {
        for bad in [0, 1, 5, i32::MAX, i32::MIN, -4096] {
            assert_eq!(Error::from_errno(bad), EINVAL);
        }
        for good in [-1, -5, -4095] {
            assert_eq!(Error::from_errno(good).to_errno(), good);
        }
    }

    #[test]
    fn to_and_from_the_host() {
        assert_eq!(Error::from(std::io::Error::from(ENOSPC)), ENOSPC);
        assert_eq!(Error::from(std::io::Error::other("no number")), EIO);
    }
}
