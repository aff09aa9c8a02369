// SPDX-License-Identifier: GPL-2.0-only
//! The virtual machine: QEMU's command line, and the process behind it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::proc::{self, Interrupted, Proc};
use crate::run::{End, Msg, Vm};

/// What executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The host's CPUs.
    Kvm,
    /// QEMU's translator, a host thread per CPU.
    Tcg,
    /// QEMU's translator, one instruction a nanosecond, so that the guest's clock counts instructions.
    Icount,
}

/// A disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Image file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Each write takes this much longer; reads do not.
    pub write_delay: Duration,
    /// The file takes O_DIRECT.
    pub direct: bool,
    /// Nobody needs the file after a crash of the host: flushes need not reach its disk.
    pub scratch: bool,
}

/// A machine to boot.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's ELF file.
    pub kernel: PathBuf,
    /// Its plan, JSON.
    pub plan: PathBuf,
    /// CPUs.
    pub smp: u32,
    /// RAM, MiB.
    pub mem_mib: u64,
    /// In PCI order.
    pub disks: Vec<Disk>,
    /// What executes it.
    pub accel: Accel,
    /// Wait for gdb before the first instruction.
    pub gdb: bool,
    /// Where QEMU's control socket goes.
    pub qmp: PathBuf,
    /// Where the guest's bulk data goes.
    pub debugcon: PathBuf,
    /// What QEMU is told besides.
    pub extra: Vec<OsString>,
}

/// A comma separates options on QEMU's command line unless it is doubled.
pub(crate) fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The block nodes of a disk; the last one is what the guest sees.
fn block_nodes(index: usize, disk: &Disk) -> Vec<Value> {
    let file = json!({
        "driver": "file", "node-name": format!("file{index}"), "filename": disk.path.to_string_lossy(),
        "aio": if disk.direct { "native" } else { "threads" },
        "cache": { "direct": disk.direct, "no-flush": disk.scratch },
        // What the guest discards becomes holes in the image.
        "discard": "unmap",
    });
    let raw = json!({
        "driver": "raw", "node-name": format!("raw{index}"), "file": format!("file{index}"), "discard": "unmap",
    });
    let mut nodes = vec![file, raw];
    if !disk.write_delay.is_zero() {
        // A write is done when both children have it, a read asks the first alone: the data is the file's, the time of
        // a write the other's.
        nodes.push(json!({
            "driver": "null-co", "node-name": format!("wait{index}"), "size": disk.bytes,
            "latency-ns": disk.write_delay.as_nanos() as u64,
        }));
        nodes.push(json!({
            "driver": "quorum", "node-name": format!("slow{index}"), "vote-threshold": 1, "read-pattern": "fifo",
            "children": [format!("raw{index}"), format!("wait{index}")],
        }));
    }
    nodes
}

/// The CPU that is emulated. Without `cmpxchg16b`: QEMU 7.2 has been seen to leave rubbish in the flags after it, of which Linux 6.12,
/// whose slab allocator uses it, dies within seconds under load.
const TCG_CPU: &str = "Nehalem,-cx16";

impl Config {
    /// QEMU's arguments.
    pub fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut put = |words: &[&str]| args.extend(words.iter().map(OsString::from));
        match self.accel {
            Accel::Kvm => put(&["-accel", "kvm", "-cpu", "host"]),
            Accel::Tcg => put(&["-accel", "tcg,thread=multi", "-cpu", TCG_CPU]),
            // One CPU, one thread. While the guest sleeps its clock runs with the host's: with sleep=off each wait for
            // the disk would take it to its next timer, and every write would find the clock changed.
            Accel::Icount => put(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on", "-cpu", TCG_CPU]),
        }
        put(&["-machine", "q35", "-smp", &self.smp.to_string(), "-m", &format!("{}M", self.mem_mib)]);
        put(&["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        put(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        put(&["-chardev", &format!("file,id=bulk,path={}", escaped(&self.debugcon))]);
        put(&["-device", "isa-debugcon,iobase=0xe9,chardev=bulk"]);
        put(&["-chardev", &format!("socket,id=qmp,path={},server=on,wait=off", escaped(&self.qmp))]);
        put(&["-mon", "chardev=qmp,mode=control"]);
        for (index, disk) in self.disks.iter().enumerate() {
            let nodes = block_nodes(index, disk);
            for node in &nodes {
                put(&["-blockdev", &node.to_string()]);
            }
            let top = nodes.last().and_then(|n| n["node-name"].as_str()).unwrap_or("");
            put(&["-object", &format!("iothread,id=io{index}")]);
            // The address orders the disks for the guest. A request takes three places in the queue.
            let device = format!(
                "virtio-blk-pci,drive={top},addr={:#x},num-queues={},queue-size=1024,disable-legacy=on,iothread=io{index}",
                index + 2,
                self.smp
            );
            put(&["-device", &device]);
        }
        if self.gdb {
            put(&["-s", "-S"]);
        }
        put(&["-kernel"]);
        args.push(self.kernel.clone().into());
        args.push("-initrd".into());
        args.push(self.plan.clone().into());
        args.extend(self.extra.iter().cloned());
        args
    }
}

/// A running QEMU.
#[derive(Debug)]
pub struct Machine {
    proc: Proc,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    qmp: PathBuf,
    start: Instant,
}

impl Machine {
    /// Boots a machine.
    ///
    /// # Errors
    ///
    /// QEMU could not be started. What it does not like about its arguments comes as its end.
    pub fn boot(config: &Config) -> Result<Machine> {
        let mut cmd = proc::tool(crate::deps::QEMU.program)?;
        cmd.args(config.args());
        Machine::start(cmd, &config.qmp)
    }

    /// Runs `cmd` as a machine.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn start(mut cmd: Command, qmp: &Path) -> Result<Machine> {
        cmd.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut proc = Proc::spawn(cmd)?;
        let stdout = proc.take_stdout().context("stdout of QEMU")?;
        let stderr = proc.take_stderr().context("stderr of QEMU")?;
        Ok(Machine {
            proc,
            stdout: Lines::new(stdout),
            stderr: Lines::new(stderr),
            qmp: qmp.into(),
            start: Instant::now(),
        })
    }

    /// Stops the machine's CPUs and its clock, or lets them go on.
    ///
    /// # Errors
    ///
    /// The monitor does not answer.
    pub fn pause(&self, paused: bool) -> Result<()> {
        let answer = self.control(&[json!({"execute": if paused { "stop" } else { "cont" }})])?;
        match answer.get("error") {
            Some(e) => bail!("stop or cont: {}", e["desc"].as_str().unwrap_or("refused")),
            None => Ok(()),
        }
    }

    /// Runs monitor commands; returns the last one's answer.
    fn control(&self, commands: &[Value]) -> Result<Value> {
        let limit = Some(Duration::from_secs(2));
        let mut stream = UnixStream::connect(&self.qmp).context("QEMU's control socket")?;
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(limit)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut answer = Value::Null;
        let mut greeting = String::new();
        reader.read_line(&mut greeting).context("QEMU's control socket")?;
        for command in std::iter::once(&json!({"execute": "qmp_capabilities"})).chain(commands) {
            writeln!(stream, "{command}").context("QEMU's control socket")?;
            answer = loop {
                let mut line = String::new();
                if reader.read_line(&mut line).context("QEMU's control socket")? == 0 {
                    bail!("QEMU closed its control socket");
                }
                let value: Value = serde_json::from_str(&line).context("QEMU's answer")?;
                // Events come in between.
                if value.get("return").is_some() || value.get("error").is_some() {
                    break value;
                }
            };
        }
        Ok(answer)
    }
}

impl Vm for Machine {
    fn next(&mut self, limit: Duration) -> Result<Msg, Interrupted> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(line) = self.stdout.pop() {
                return Ok(Msg::Line(line));
            }
            if let Some(line) = self.stderr.pop() {
                return Ok(Msg::Stderr(line));
            }
            // Both are drained before the end is told: the last words matter most.
            let open = [self.stdout.open, self.stderr.open];
            let mut fds = Vec::new();
            if open[0] {
                fds.push(self.stdout.from.as_fd());
            }
            if open[1] {
                fds.push(self.stderr.from.as_fd());
            }
            if open == [false, false] {
                fds.push(self.proc.end_fd());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = match proc::wait_readable(&fds, Some(left)) {
                Ok(ready) => ready,
                Err(_) => return Err(Interrupted),
            };
            if !ready.contains(&true) {
                return Ok(Msg::Quiet);
            }
            if open == [false, false] {
                return Ok(Msg::End(end_of(&mut self.proc)));
            }
            let mut ready = ready.into_iter();
            if open[0] && ready.next() == Some(true) {
                self.stdout.fill();
            }
            if open[1] && ready.next() == Some(true) {
                self.stderr.fill();
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn registers(&mut self) -> Result<String> {
        let command = json!({"execute": "human-monitor-command", "arguments": {"command-line": "info registers -a"}});
        let answer = self.control(&[command])?;
        Ok(answer["return"].as_str().unwrap_or_default().to_owned())
    }

    fn inject_nmi(&mut self) -> Result<()> {
        let answer = self.control(&[json!({"execute": "inject-nmi"})])?;
        match answer.get("error") {
            Some(e) => bail!("inject-nmi: {}", e["desc"].as_str().unwrap_or("refused")),
            None => Ok(()),
        }
    }

    fn kill(&mut self) {
        self.proc.kill();
    }
}

fn end_of(proc: &mut Proc) -> End {
    match proc.wait(Some(Duration::from_secs(5))) {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Code(code),
            (None, signal) => End::Signal(signal.unwrap_or(0)),
        },
        // It closed its output and stays: killed by `wait`.
        Err(_) => End::Signal(9),
    }
}

/// Longest line; what is longer is cut there.
const MAX_LINE: usize = 4 << 20;

/// Cuts a stream into lines.
#[derive(Debug)]
struct Lines<R> {
    from: R,
    buffer: Vec<u8>,
    /// Up to here there is no newline.
    searched: usize,
    open: bool,
}

impl<R: Read> Lines<R> {
    fn new(from: R) -> Self {
        Lines { from, buffer: Vec::new(), searched: 0, open: true }
    }

    /// Reads what there is; the caller knows that it will not block.
    fn fill(&mut self) {
        let mut chunk = [0; 16384];
        match self.from.read(&mut chunk) {
            Ok(0) => self.open = false,
            Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => self.open = false,
        }
    }

    /// The next whole line, or the rest once the stream is closed.
    fn pop(&mut self) -> Option<String> {
        let newline = self.buffer[self.searched..].iter().position(|b| *b == b'\n').map(|i| i + self.searched);
        let (line, rest) = match newline {
            Some(at) => (at, at + 1),
            None if self.buffer.len() >= MAX_LINE || (!self.open && !self.buffer.is_empty()) => {
                (self.buffer.len(), self.buffer.len())
            }
            None => {
                self.searched = self.buffer.len();
                return None;
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..line]).trim_end_matches('\r').to_owned();
        self.buffer.drain(..rest);
        self.searched = 0;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let disk = |path: &str, ms| Disk {
            path: path.into(),
            bytes: 1 << 30,
            write_delay: Duration::from_millis(ms),
            direct: ms > 0,
            scratch: ms > 0,
        };
        Config {
            kernel: "/t/guest".into(),
            plan: "/t/plan".into(),
            smp: 3,
            mem_mib: 512,
            disks: vec![disk("/t/a,b.img", 2), disk("/t/raw", 0)],
            accel: Accel::Tcg,
            gdb: false,
            qmp: "/t/q,mp".into(),
            debugcon: "/t/bulk".into(),
            extra: Vec::new(),
        }
    }

    fn args(config: &Config) -> Vec<String> {
        config.args().into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    /// The values that follow an option.
    fn all(args: &[String], option: &str) -> Vec<String> {
        args.windows(2).filter(|w| w[0] == option).map(|w| w[1].clone()).collect()
    }

    #[test]
    fn a_delayed_disk_is_a_quorum_of_the_file_and_a_clock() {
        let args = args(&config());
        let nodes: Vec<Value> = all(&args, "-blockdev").iter().map(|s| serde_json::from_str(s).unwrap()).collect();
        let names: Vec<&str> = nodes.iter().map(|n| n["node-name"].as_str().unwrap()).collect();
        assert_eq!(names, ["file0", "raw0", "wait0", "slow0", "file1", "raw1"]);
        assert_eq!(nodes[0]["filename"], "/t/a,b.img");
        assert_eq!(nodes[0]["aio"], "native");
        assert_eq!(nodes[0]["cache"], json!({"direct": true, "no-flush": true}));
        assert_eq!(nodes[2]["latency-ns"], 2_000_000);
        assert_eq!(nodes[2]["size"], 1u64 << 30);
        assert_eq!(nodes[3]["children"], json!(["raw0", "wait0"]));
        assert_eq!(nodes[4]["aio"], "threads");
        assert_eq!(nodes[4]["cache"], json!({"direct": false, "no-flush": false}));
        let disks: Vec<String> = all(&args, "-device").into_iter().filter(|d| d.starts_with("virtio")).collect();
        assert_eq!(
            disks[0],
            "virtio-blk-pci,drive=slow0,addr=0x2,num-queues=3,queue-size=1024,disable-legacy=on,iothread=io0"
        );
        assert_eq!(
            disks[1],
            "virtio-blk-pci,drive=raw1,addr=0x3,num-queues=3,queue-size=1024,disable-legacy=on,iothread=io1"
        );
    }

    #[test]
    fn the_machine_is_as_the_guest_wants_it() {
        let mut c = config();
        let a = args(&c);
        for (option, value) in [
            ("-machine", "q35"),
            ("-smp", "3"),
            ("-m", "512M"),
            ("-serial", "stdio"),
            ("-kernel", "/t/guest"),
            ("-initrd", "/t/plan"),
            ("-accel", "tcg,thread=multi"),
        ] {
            assert_eq!(all(&a, option), [value], "{option}");
        }
        assert!(all(&a, "-device").contains(&"isa-debug-exit,iobase=0xf4,iosize=4".into()));
        assert!(all(&a, "-chardev").contains(&"socket,id=qmp,path=/t/q,,mp,server=on,wait=off".into()));
        assert!(!a.contains(&"-S".into()) && !a.contains(&"-icount".into()));
        c.gdb = true;
        c.accel = Accel::Kvm;
        let a = args(&c);
        assert!(a.contains(&"-S".into()) && a.contains(&"-s".into()));
        assert_eq!(all(&a, "-cpu"), ["host"]);
        c.accel = Accel::Icount;
        let a = args(&c);
        assert_eq!(all(&a, "-icount"), ["shift=0,sleep=on"]);
        assert_eq!(all(&a, "-accel"), ["tcg,thread=single"]);
    }

    fn fake(script: &str) -> Machine {
        let mut cmd = Command::new("/bin/sh");
        cmd.args(["-c", script]);
        Machine::start(cmd, Path::new("/nonexistent")).unwrap()
    }

    #[test]
    fn lines_come_before_the_end() {
        let mut vm = fake("printf 'one\\r\\ntwo\\nrest'; echo bad >&2; exit 33");
        let mut lines = Vec::new();
        let mut errors = Vec::new();
        let end = loop {
            match vm.next(Duration::from_secs(20)).unwrap() {
                Msg::Line(l) => lines.push(l),
                Msg::Stderr(l) => errors.push(l),
                Msg::End(end) => break end,
                Msg::Quiet => panic!("quiet"),
            }
        };
        assert_eq!(lines, ["one", "two", "rest"]);
        assert_eq!(errors, ["bad"]);
        assert_eq!(end, End::Code(33));
    }

    #[test]
    fn a_signal_and_silence_are_told() {
        let mut vm = fake("kill -SEGV $$");
        assert_eq!(vm.next(Duration::from_secs(20)).unwrap(), Msg::End(End::Signal(11)));
        let mut vm = fake("sleep 1000");
        assert_eq!(vm.next(Duration::ZERO).unwrap(), Msg::Quiet);
        assert!(vm.inject_nmi().is_err() && vm.registers().is_err());
        vm.kill();
        assert_eq!(vm.next(Duration::from_secs(20)).unwrap(), Msg::End(End::Signal(9)));
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut lines = Lines::new(std::io::repeat(b'x'));
        while lines.pop().is_none() {
            lines.fill();
        }
        assert!(lines.buffer.len() < MAX_LINE);
    }

    #[test]
    fn qmp_answers_are_told_from_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            writeln!(s, r#"{{"QMP": {{}}}}"#).unwrap();
            let mut r = BufReader::new(s.try_clone().unwrap());
            let mut got = Vec::new();
            for answer in [r#"{"return": {}}"#, "{\"event\": \"STOP\"}\n{\"error\": {\"desc\": \"no NMI\"}}"] {
                let mut line = String::new();
                r.read_line(&mut line).unwrap();
                got.push(serde_json::from_str::<Value>(&line).unwrap()["execute"].as_str().unwrap().to_owned());
                writeln!(s, "{answer}").unwrap();
            }
            got
        });
        let mut cmd = Command::new("/bin/sh");
        cmd.args(["-c", "sleep 1000"]);
        let mut vm = Machine::start(cmd, &path).unwrap();
        assert_eq!(vm.inject_nmi().unwrap_err().to_string(), "inject-nmi: no NMI");
        assert_eq!(server.join().unwrap(), ["qmp_capabilities", "inject-nmi"]);
    }
}
