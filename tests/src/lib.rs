// SPDX-License-Identifier: GPL-2.0-only
//! Fixtures of the hosted tests.

pub mod dio;
pub mod images;
pub mod reader;
