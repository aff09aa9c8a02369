// SPDX-License-Identifier: GPL-2.0-only
//! Each operation is taken, and what is wrong is named.

use alloc::vec;

use super::*;

fn one(text: &str) -> Op {
    parse(text, "s").unwrap_or_else(|e| panic!("{e}")).remove(0).op
}

fn error(text: &str) -> String {
    parse(text, "s").expect_err(text).to_string()
}

#[test]
fn each_operation_is_taken() {
    let text = "mkdir /d\nmkdir /d 1777\nrmdir /d\ncreate /f 600\nwrite /f 4k 0x10 0xff direct dsync\nread /f 0 1m direct\n\
                truncate /f 1g\nfallocate /f collapse 0 4k\nrename /f /g exchange\nlink /f /g\nsymlink ../x /l\nreadlink /l\n\
                unlink /f\nchmod /f 4755\nchown /f - 7\nutimens /f 5.5 now\nsetxattr /f user.a b create\n\
                getxattr /f user.a\nlistxattr /f\nremovexattr /f user.a\nls /\nstat /f\nstatfs\nfiemap /f\nseek /f hole 9\n\
                fsync /f\nfdatasync /f\nsync\nremount ro,noatime\nmount\nmount noload";
    let lines = parse(text, "s").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(lines.len(), text.lines().count());
    for (name, _) in OPERATIONS {
        assert!(lines.iter().any(|l| l.text.split(' ').next() == Some(name)), "{name} is not in the test");
    }
    let how = How { direct: true, append: false, dsync: true };
    assert_eq!(lines[4].op, Op::Write { path: "/f".into(), offset: 4096, length: 16, with: vec![255], how });
    assert_eq!(lines[14].op, Op::Chown { path: "/f".into(), uid: None, gid: Some(7) });
    assert_eq!(lines[15].op, Op::Utimens { path: "/f".into(), atime: Time::At(5, 500_000_000), mtime: Time::Now });
}

#[test]
fn comments_quotes_and_expectations() {
    let lines = parse("# head\n\n  expect ENOENT unlink /x  # gone\nwrite /a 0 3 \"4 # \\\"\\x41\\n\"\n", "s").unwrap();
    assert_eq!((lines[0].number, lines[0].text.as_str(), lines[0].expect), (3, "expect ENOENT unlink /x", Some(2)));
    assert!(matches!(&lines[1].op, Op::Write { with, .. } if with == b"4 # \"A\n"));
    assert_eq!(lines[1].number, 4);
    assert!(matches!(one("write /a 0 3 abc"), Op::Write { with, .. } if with == b"abc"));
    assert!(matches!(one("setxattr /a user.x \"\""), Op::Setxattr { value, .. } if value.is_empty()));
}

#[test]
fn what_is_wrong_is_named() {
    for (line, want) in [
        ("chmodd /x 644", "`chmodd` is no operation; mkdir, rmdir"),
        ("mkdir", "PATH is missing (mkdir PATH [MODE])"),
        ("mkdir d", "`d`: a path begins with /"),
        ("mkdir /d 888", "`888` is no MODE"),
        ("rmdir /d /e", "`/e` is one word too many (rmdir PATH)"),
        ("sync now", "`now` is one word too many (sync)"),
        ("write /f 0 4x a", "`4x` is no LENGTH"),
        ("write /f 0 1g a", "`1073741824` is more than 64 MiB at once"),
        ("write /f 0 4 256", "`256` is no byte"),
        ("write /f 0 4 \"\"", "an empty text"),
        ("write /f 0 4 a fast", "`fast` is not one of direct, append, dsync"),
        ("write /f 8 4 a append", "`8`: with append"),
        ("read /f 0 4 append", "`append` is not one of direct"),
        ("truncate /f 9223372036854775808", "`9223372036854775808` is no SIZE"),
        ("fallocate /f dig 0 4", "`dig` is not one of default, keep, punch"),
        ("rename /a /b swap", "`swap` is not one of noreplace, exchange"),
        ("chown /f root -", "`root` is no UID"),
        ("utimens /f 1.x now", "`1.x` is no ATIME"),
        ("seek /f end 0", "`end` is not one of data, hole"),
        ("expect EWHAT unlink /x", "`EWHAT` is no errno"),
        ("expect ENOENT", "an operation after the errno is missing"),
        ("unlink \"/x", "the closing quote is missing"),
        ("unlink \"/x\"y", "a blank has to come"),
        ("unlink /x\"y\"", "quotes go around the whole word"),
        ("unlink \"/\\q\"", "`\\q`: known are"),
        ("unlink \"/\\x9\"", "`\\x9"),
    ] {
        let got = error(&format!("sync\n\n{line}\n"));
        assert!(got.starts_with("s:3: ") && got.contains(want), "{line}: {got}");
    }
    assert!(error("# nothing\n").contains("not one operation"));
}

/// Whatever is in a file, the answer is a value.
#[test]
fn no_line_is_too_odd() {
    let pieces =
        ["write", "/a", "0", "\"", "\\", "x", "#", "\n", "é", "0x", "k", " ", "expect", "ENOENT", ".", "-", "\t"];
    let mut x = 1u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..12 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += pieces[(x >> 33) as usize % pieces.len()];
        }
        let _ = parse(&text, "s");
    }
}
