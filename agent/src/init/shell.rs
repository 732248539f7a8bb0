//! `bulkhead.debug_shell`: a few words to look around with on the console. The guest has no program but the agent, and this
//! needs neither vsock nor the agent's runtime: it answers when those hang.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

const CONSOLE: &str = "/dev/console";
const PROMPT: &[u8] = b"debug> ";
/// Longest line that is read.
const MAX_LINE: u64 = 4096;
/// Most of a file that is shown, and most entries of a directory.
const MAX_SHOWN: u64 = 256 << 10;
const MAX_ENTRIES: usize = 1000;
const HELP: &str = "ls PATH    names in a directory\n\
                    cat PATH   a file's content, up to 256 KiB\n\
                    ps         processes: id, parent, state, name, cgroup\n\
                    mounts     of the agent\n\
                    dmesg      the kernel's log\n\
                    help       this\n";

/// Answers on the console from now on, on a thread of its own.
pub(super) fn start() -> io::Result<()> {
    let open =
        || OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(CONSOLE);
    let (input, output) = (open()?, open()?);
    std::thread::Builder::new().name("debug-shell".into()).spawn(move || answer(input, output))?;
    Ok(())
}

fn answer(input: File, mut output: File) {
    let mut lines = BufReader::new(input);
    let mut go_on = output.write_all(b"bulkhead-agent: debug shell; \"help\" lists what it knows\r\n");
    while go_on.is_ok() {
        let mut line = Vec::new();
        go_on = output.write_all(PROMPT).and_then(|()| {
            match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => run(&String::from_utf8_lossy(&line), &mut output),
            }
        });
    }
}

/// An error is the console's: those of the files are printed.
fn run(line: &str, output: &mut dyn Write) -> io::Result<()> {
    let (word, path) = line.trim().split_once(' ').map_or((line.trim(), ""), |(word, path)| (word, path.trim()));
    let result = match word {
        "" => Ok(String::new()),
        "help" => Ok(HELP.to_owned()),
        "ls" => list(Path::new(path)),
        "cat" => show(Path::new(path)),
        "ps" => processes(Path::new("/proc")),
        "mounts" => show(Path::new("/proc/self/mounts")),
        "dmesg" => show(Path::new("/dev/kmsg")),
        _ => Ok(format!("{word:?} is not known; \"help\" lists what is\n")),
    };
    let text = result.unwrap_or_else(|error| format!("{word} {path}: {error}\n"));
    // The terminal adds the carriage returns.
    output.write_all(text.as_bytes())
}

fn list(path: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let kind = entry.file_type()?;
        let sign = match () {
            () if kind.is_dir() => "/",
            () if kind.is_symlink() => "@",
            () if kind.is_socket() => "=",
            () => "",
        };
        names.push(format!("{}{sign}\n", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(names.concat())
}

/// What can be read now: a log or pipe that would wait for more ends there.
fn show(path: &Path) -> io::Result<String> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 8192]);
    while (bytes.len() as u64) < MAX_SHOWN {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => bytes.extend(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // A record of the kernel's log that was overwritten meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe) => {}
            Err(error) => return Err(error),
        }
    }
    let mut text: String =
        String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Those that end while they are listed are left out.
fn processes(proc: &Path) -> io::Result<String> {
    let mut found: Vec<(u32, String)> = Vec::new();
    for entry in fs::read_dir(proc)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(proc.join(&name).join(file));
        let (Ok(stat), Ok(cgroup)) = (read("stat"), read("cgroup")) else { continue };
        // "ID (NAME) STATE PARENT ..."; the name may have anything in it.
        let Some((first, rest)) = stat.rsplit_once(')') else { continue };
        let mut rest = rest.split_whitespace();
        let (state, parent) = (rest.next().unwrap_or("?"), rest.next().unwrap_or("?"));
        let command = first.split_once('(').map_or("", |(_, name)| name);
        let cgroup = cgroup.trim().rsplit(':').next().unwrap_or_default().to_owned();
        found.push((id, format!("{id:>6} {parent:>6} {state} {command:<16} {cgroup}\n")));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, line)| line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let mut output = Vec::new();
        run(line, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn what_it_knows_is_answered_and_what_it_does_not_too() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a file"), "one\x1b[2J\ntwo").unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        assert_eq!(said(&format!("ls {}\r\n", directory.path().display())), "a file\nsub/\n");
        assert_eq!(said(&format!("cat {}/a file\n", directory.path().display())), "one[2J\ntwo\n");
        assert!(said("cat /nowhere\n").contains("cat /nowhere: No such file"));
        assert!(said("rm -rf /\n").contains("\"rm\" is not known"));
        assert!(said("help\n").contains("dmesg") && said("\n").is_empty());
        let own = format!("{:>6} ", std::process::id());
        assert!(said("ps\n").lines().any(|line| line.starts_with(&own)));
    }
}
