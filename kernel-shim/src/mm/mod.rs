// SPDX-License-Identifier: GPL-2.0-only
//! Memory management as far as files need it.

pub mod filemap;
pub mod page_cache;
mod page_tree;
pub mod readahead;
pub mod writeback;
