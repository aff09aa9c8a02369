// SPDX-License-Identifier: GPL-2.0-only
//! There is no lockdep here.

pub(crate) use off::Dep;

#[path = "../../../kernel-shim/src/sync/lockdep/off.rs"]
#[expect(dead_code, reason = "not all of it is used here")]
mod off;

/// As `kernel-shim`'s.
pub(crate) enum Kind {
    Untracked,
    Spin,
    Sleeping,
    Map,
}

/// As `kernel-shim`'s.
pub(crate) enum Mode {
    Read,
    Write,
}
