//! PID 1 of a pod's sandbox: holds the pod's namespaces open, reaps what is orphaned to it, ends on SIGTERM.
//! It must not need libc, memory beyond its stack, or any file: it is the only file of its image.
//!
//! Not a module of the crate: `build.rs` compiles it as a program of its own.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const EINTR: isize = -4;

/// The kernel's signal set: one bit for each of 64 signals.
static EVERY_SIGNAL: u64 = u64::MAX;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const WAIT4: usize = 260;
    pub(crate) const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "bl {main}", "brk #1", main = sym main);

#[cfg(target_arch = "x86_64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the callers below pass null or pointers to statics, and the kernel writes through none of them.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

#[cfg(target_arch = "aarch64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the callers below pass null or pointers to statics, and the kernel writes through none of them.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    answer
}

fn exit(code: usize) -> ! {
    loop {
        syscall(number::EXIT_GROUP, code, 0, 0, 0);
    }
}

extern "C" fn main() -> ! {
    let all = &raw const EVERY_SIGNAL as usize;
    let size = size_of::<u64>();
    // PID 1 has no default actions: a signal that is not blocked would be dropped before anyone could wait for it.
    if syscall(number::RT_SIGPROCMASK, SIG_SETMASK, all, 0, size) < 0 {
        exit(1);
    }
    loop {
        // Before the first wait, too: children may have ended before the signals were blocked. SIGCHLDs that arrive
        // together are one signal, hence the loop.
        while syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {}
        loop {
            match syscall(number::RT_SIGTIMEDWAIT, all, 0, 0, size) {
                SIGINT | SIGTERM => exit(0),
                SIGCHLD => break,
                EINTR => {}
                // An error that is not EINTR would come again at once: rather end than spin.
                error if error < 0 => exit(1),
                _ => {}
            }
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(1)
}
