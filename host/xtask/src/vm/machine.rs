//! One emulated machine that runs: booted from a copy of the image, reached by ssh, ended when this is dropped.
//! Must not know what is done in it.

use std::{
    cell::RefCell,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::image::Image;
use crate::{
    place::Place,
    process::{self, Running},
    say,
};

/// Boots take 20 s on an idle machine; a busy CI may be many times slower.
const BOOT: Duration = Duration::from_secs(300);

/// How long a command in the machine may take that is over at once where nobody else wants the cores.
pub(super) const SHORT: Duration = Duration::from_secs(180);
/// And one that waits for services to begin or to end.
pub(super) const LONG: Duration = Duration::from_secs(240);

/// What the kernel is told. Emulated, the guards against other processors' faults and tables of five levels cost a third of the time.
const APPEND: &str = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off no5lvl";

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: RefCell<Running>,
    port: u16,
    key: PathBuf,
    folder: PathBuf,
}

impl Machine {
    /// Boots a copy of `image` with the files of `payload` mounted read-only at `/payload`, and waits for ssh. Their folder is
    /// removed: they are on a disk of the machine's then.
    ///
    /// # Errors
    /// When it does not come up; the end of its console is in the message.
    pub(crate) fn boot(place: &Place, image: &Image, payload: &Path) -> Result<Self> {
        let folder = place.work().join("vm");
        fs::create_dir_all(&folder)?;
        let (disk, extra) = (folder.join("disk.img"), folder.join("payload.img"));
        let limit = Duration::from_secs(300);
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(image.disk()).arg(&disk);
        process::output("cp", &mut copy, limit)?;
        let _ = fs::remove_file(&extra);
        let mut make = Command::new("mke2fs");
        make.args(["-q", "-t", "ext4", "-d"]).arg(payload).arg(&extra).arg("2G");
        process::output("mke2fs", &mut make, limit)?;
        fs::remove_dir_all(payload).with_context(|| format!("{}", payload.display()))?;
        // Free now; should somebody take it meanwhile, qemu says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let qemu = RefCell::new(Self::launch(place, image, &folder, port)?);
        let machine = Self { qemu, port, key: image.key(), folder };
        machine.wait_for_ssh()?;
        Ok(machine)
    }

    /// Starts it again after it was powered off, as it was then.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn power_on(&self, place: &Place, image: &Image) -> Result<()> {
        *self.qemu.borrow_mut() = Self::launch(place, image, &self.folder, self.port)?;
        self.wait_for_ssh()
    }

    /// Takes its power: what it has not flushed is lost, as its own memory is. (What it has is in the file of its disk, whatever
    /// becomes of qemu.)
    pub(crate) fn cut_power(&self) {
        self.qemu.borrow_mut().stop(Duration::ZERO);
    }

    /// Runs `script`, which powers it off, and waits until it is off.
    ///
    /// # Errors
    /// When it stays on.
    pub(crate) fn power_off(&self, script: &str, limit: Duration) -> Result<()> {
        // The connection may be cut before ssh hears how it went.
        let _ = self.run(script, Duration::from_secs(60));
        let deadline = Instant::now() + limit;
        while self.runs() {
            if Instant::now() > deadline {
                bail!("the machine does not go off; its console ends:\n{}", self.console_tail());
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn launch(place: &Place, image: &Image, folder: &Path, port: u16) -> Result<Running> {
        let (disk, extra, console) = (folder.join("disk.img"), folder.join("payload.img"), folder.join("console.log"));
        let (out, err) = process::log_pair(&place.fresh_log("vm-qemu")?)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .args(["-append", APPEND])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()))
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,readonly=on", extra.display()))
            .arg("-netdev")
            .arg(format!("user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"))
            .args(["-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci", "-display", "none"])
            .args(["-monitor", "none", "-serial"])
            .arg(format!("file:{}", console.display()))
            .stdout(out)
            .stderr(err);
        Running::start("qemu", &mut qemu)
    }

    /// Whether it still runs.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.qemu.borrow_mut().try_wait(), Ok(None))
    }

    /// The file that its serial console goes to.
    pub(crate) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What a person types to get a shell in it.
    pub(crate) fn ssh_command(&self) -> String {
        format!("ssh {} root@127.0.0.1", self.ssh_options().join(" "))
    }

    fn ssh_options(&self) -> Vec<String> {
        let mut options = vec!["-p".to_owned(), self.port.to_string(), "-i".to_owned(), self.key.display().to_string()];
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "ConnectTimeout=10",
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options
    }

    /// ssh that runs `script` with the machine's sh.
    pub(crate) fn ssh(&self, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.ssh_options()).arg("root@127.0.0.1").arg(script);
        command
    }

    /// ssh with these options and no command.
    pub(crate) fn ssh_with(&self, options: &[String]) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.ssh_options()).args(options).arg("root@127.0.0.1");
        command
    }

    /// Runs `script` in the machine and gives its stdout.
    ///
    /// # Errors
    /// When it fails or takes longer than `limit`.
    pub(crate) fn run(&self, script: &str, limit: Duration) -> Result<String> {
        process::output("in the machine", &mut self.ssh(script), limit).with_context(|| script.to_owned())
    }

    /// Runs `script` again and again until it succeeds; gives its stdout.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub(crate) fn until(&self, script: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.run(script, Duration::from_secs(60)) {
                Ok(text) => return Ok(text),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("not within {} s", limit.as_secs())));
                }
                Err(_) => thread::sleep(Duration::from_millis(500)),
            }
            process::check_interrupted()?;
        }
    }

    /// Reboots it, and waits until it is another boot that answers.
    ///
    /// # Errors
    /// When it does not come back.
    pub(crate) fn reboot(&self) -> Result<()> {
        let id = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(id, Duration::from_secs(60))?;
        // The connection may be cut before ssh hears how it went.
        let _ = self.run("systemctl reboot", Duration::from_secs(60));
        let deadline = Instant::now() + BOOT;
        loop {
            if self.run(id, Duration::from_secs(30)).is_ok_and(|now| now != before) {
                return Ok(());
            }
            if Instant::now() > deadline || !self.runs() {
                bail!("the machine does not come back from a reboot; its console ends:\n{}", self.console_tail());
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn wait_for_ssh(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        while self.run("true", Duration::from_secs(30)).is_err() {
            if Instant::now() > deadline || !self.runs() {
                bail!("the virtual machine does not come up; its console ends:\n{}", self.console_tail());
            }
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    fn console_tail(&self) -> String {
        say::tail(&String::from_utf8_lossy(&fs::read(self.console()).unwrap_or_default()), 30)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its disk is a copy that goes as well: there is nothing to shut down in order.
        self.qemu.borrow_mut().stop(Duration::from_secs(2));
        for name in ["disk.img", "payload.img"] {
            let _ = fs::remove_file(self.folder.join(name));
        }
    }
}
