// SPDX-License-Identifier: GPL-2.0-only
//! Errors by name, for scripts.

/// Names and numbers of what a file system answers.
const ERRNOS: [(&str, i32); 46] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("E2BIG", 7),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EFAULT", 14),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("EXDEV", 18),
    ("ENODEV", 19),
    ("ENOTDIR", 20),
    ("EISDIR", 21),
    ("EINVAL", 22),
    ("ENFILE", 23),
    ("EMFILE", 24),
    ("ENOTTY", 25),
    ("ETXTBSY", 26),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("ESPIPE", 29),
    ("EROFS", 30),
    ("EMLINK", 31),
    ("EPIPE", 32),
    ("EDOM", 33),
    ("ERANGE", 34),
    ("ENAMETOOLONG", 36),
    ("ENOSYS", 38),
    ("ENOTEMPTY", 39),
    ("ELOOP", 40),
    ("EBADR", 53),
    ("ENODATA", 61),
    ("EBADMSG", 74),
    ("EFSBADCRC", 74),
    ("EOVERFLOW", 75),
    ("EOPNOTSUPP", 95),
    ("ENOTSUP", 95),
    ("ESTALE", 116),
    ("EUCLEAN", 117),
    ("EFSCORRUPTED", 117),
    ("EDQUOT", 122),
    ("ENOKEY", 126),
];

/// The number behind a name.
pub fn number(name: &str) -> Option<i32> {
    ERRNOS.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}

/// The name of a number, with or without the sign.
pub fn name(number: i32) -> Option<&'static str> {
    ERRNOS.iter().find(|(_, n)| *n == number.saturating_abs()).map(|(name, _)| *name)
}
