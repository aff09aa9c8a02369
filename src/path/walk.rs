// SPDX-License-Identifier: GPL-2.0-only
//! From a path to an inode, name by name: C's `link_path_walk()`.

use core::ops::Range;

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::code::{ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};

use crate::corrupt::Ext4Result;
use crate::dir::Node;
use crate::ext4::Ino;
use crate::namei::ext4_lookup;
use crate::symlink::ext4_readlink;

/// Longest path in bytes, the terminating zero of C included.
pub const PATH_MAX: usize = 4096;
/// Symbolic links that one path may lead through.
const MAXSYMLINKS: u32 = 40;

/// What the last component of a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// A name.
    #[doc(alias = "LAST_NORM")]
    Norm,
    /// There is none: the path is the root.
    #[doc(alias = "LAST_ROOT")]
    Root,
    /// `.`
    #[doc(alias = "LAST_DOT")]
    Dot,
    /// `..`
    #[doc(alias = "LAST_DOTDOT")]
    DotDot,
}

/// On the way along a path.
pub struct Nameidata<N> {
    root: N,
    here: N,
    /// What is left to be followed, and how far we are in it.
    left: KVec<u8>,
    at: usize,
    last: Range<usize>,
    links: u32,
}

impl<N: Node + Clone> Nameidata<N> {
    /// At the root, with all of `path` before us. ENOENT for an empty one, ENAMETOOLONG, ENOMEM.
    pub fn new(root: &N, path: &[u8]) -> Ext4Result<Self> {
        if path.is_empty() {
            return Err(ENOENT.into());
        }
        if path.len() >= PATH_MAX {
            return Err(ENAMETOOLONG.into());
        }
        let mut left = KVec::new();
        left.extend_from_slice(path, GFP_KERNEL)?;
        Ok(Self { root: root.clone(), here: root.clone(), left, at: 0, last: 0..0, links: 0 })
    }

    /// The directory that was reached.
    pub fn here(&self) -> &N {
        &self.here
    }

    /// The last component's name, after [`Nameidata::to_parent`].
    pub fn name(&self) -> &[u8] {
        self.left.get(self.last.clone()).unwrap_or_default()
    }

    /// Whether a slash comes behind the last component.
    pub fn slash(&self) -> bool {
        self.left.last() == Some(&b'/')
    }

    fn is_root(&self) -> bool {
        self.here.ctx().i_ino == self.root.ctx().i_ino
    }

    /// Goes to the directory that the last component is in, with `lookup` for each step.
    ///
    /// ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, and what `lookup` has.
    #[doc(alias = "path_parentat")]
    pub fn to_parent(&mut self, lookup: &mut impl FnMut(&N, &[u8]) -> Ext4Result<N>) -> Ext4Result<Last> {
        loop {
            let component = next_component(&self.left, self.at);
            if !self.here.is_dir() {
                return Err(ENOTDIR.into());
            }
            let Some(component) = component else { return Ok(Last::Root) };
            let is_last = next_component(&self.left, component.end).is_none();
            self.last = component.clone();
            let name = self.left.get(component.clone()).unwrap_or_default();
            let kind = match name {
                b"." => Last::Dot,
                b".." => Last::DotDot,
                _ => Last::Norm,
            };
            if is_last {
                return Ok(kind);
            }
            self.at = component.end;
            if kind == Last::Dot || (kind == Last::DotDot && self.is_root()) {
                continue;
            }
            let child = lookup(&self.here, name)?;
            if child.is_lnk() {
                self.follow(&child)?;
            } else {
                self.here = child;
            }
        }
    }

    /// A symbolic link's target takes the last component's place in the path. ELOOP after 40 of them.
    #[doc(alias = "pick_link")]
    pub fn follow(&mut self, link: &N) -> Ext4Result {
        self.links += 1;
        if self.links > MAXSYMLINKS {
            return Err(ELOOP.into());
        }
        let mut target = ext4_readlink(link)?;
        if target.first() == Some(&b'/') {
            self.here = self.root.clone();
        }
        target.extend_from_slice(self.left.get(self.last.end..).unwrap_or_default(), GFP_KERNEL)?;
        self.left = target;
        self.at = 0;
        Ok(())
    }

    /// Goes all the way; through a symbolic link at the end only if `follow` says so, or a slash comes behind it. As
    /// [`Nameidata::to_parent`].
    #[doc(alias = "path_lookupat")]
    pub fn to_end(mut self, follow: bool, lookup: &mut impl FnMut(&N, &[u8]) -> Ext4Result<N>) -> Ext4Result<N> {
        loop {
            match self.to_parent(lookup)? {
                Last::Root | Last::Dot => return Ok(self.here),
                Last::DotDot if self.is_root() => return Ok(self.here),
                Last::DotDot | Last::Norm => {}
            }
            let child = lookup(&self.here, self.name())?;
            if child.is_lnk() && (follow || self.slash()) {
                self.follow(&child)?;
            } else if self.slash() && !child.is_dir() {
                return Err(ENOTDIR.into());
            } else {
                return Ok(child);
            }
        }
    }
}

/// Follows a path from `root`, with inodes read by `iget`; through a symbolic link at its end only if
/// `follow` says so, or a slash comes behind it.
///
/// ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP after 40 symbolic links, EIO, ENOMEM, corruptions. Directories must not
/// change meanwhile. Sleeps.
pub fn path_lookup<N: Node + Clone>(
    root: &N,
    path: &[u8],
    follow: bool,
    iget: &mut impl FnMut(Ino) -> Ext4Result<N>,
) -> Ext4Result<N> {
    Nameidata::new(root, path)?.to_end(follow, &mut |dir, name| ext4_lookup(dir, name, iget))
}

/// The next name from `at` on, between slashes.
fn next_component(path: &[u8], at: usize) -> Option<Range<usize>> {
    let rest = path.get(at..)?;
    let start = at + rest.iter().position(|byte| *byte != b'/')?;
    let len = path.get(start..)?.iter().position(|byte| *byte == b'/');
    Some(start..len.map_or(path.len(), |len| start + len))
}

#[cfg(test)]
mod tests {
    use super::next_component;

    #[test]
    fn components_are_what_slashes_leave() {
        let names = |path: &'static str| {
            let mut at = 0;
            core::iter::from_fn(move || {
                let range = next_component(path.as_bytes(), at)?;
                at = range.end;
                path.get(range)
            })
        };
        assert!(names("/a//bc/").eq(["a", "bc"]));
        assert!(names("a").eq(["a"]));
        assert!(names("///").eq([] as [&str; 0]));
        assert!(names("").eq([] as [&str; 0]));
    }
}
