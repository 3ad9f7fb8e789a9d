package nix

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
)

// How a program gets to see a store of the user's own.
const (
	byRoot = "root" // a mount namespace, which only root may have alone
	byUser = "kept" // a user namespace around it, in which the user is who they are
)

// ways are those to try. Root may be none in a container.
func ways() []string {
	if os.Getuid() == 0 {
		return []string{byRoot, byUser}
	}
	return []string{byUser}
}

// enter makes a process that is to be started one of Enter's, in namespaces of its own.
func enter(spec *process.Spec, how string, own store.UserStore, directory, report, program string) {
	const self = "/proc/self/exe" // also when the file has gone
	spec.Argv = append([]string{"agent", "enter", how, string(own), directory, report, program}, spec.Argv...)
	spec.Path = self
	spec.Adapt = func(attributes *syscall.SysProcAttr) {
		attributes.Cloneflags |= syscall.CLONE_NEWNS
		if how == byUser {
			const sysAdmin = 21 // CAP_SYS_ADMIN, to mount
			attributes.Cloneflags |= syscall.CLONE_NEWUSER
			attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
			attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
			attributes.AmbientCaps = []uintptr{sysAdmin}
		}
	}
}

const (
	notEntered = 125 // as env(1) and its like end where the program was not started
	execWords  = "exec "
)

// Enter is the program `enter HOW STORE DIRECTORY REPORT PROGRAM [ARGUMENT…]` (the first argument is argv[0]): it shows
// the user's own store at /nix, and becomes the program, in the directory. What keeps it from that it writes to the
// file REPORT. An empty PROGRAM is none: only the way there is tried.
func Enter(args []string) error {
	if len(args) < 5 {
		return fmt.Errorf("usage: agent enter HOW STORE DIRECTORY REPORT PROGRAM [ARGUMENT…]")
	}
	how, own, directory, program := args[0], args[1], args[2], args[4]
	runtime.LockOSThread() // capabilities are a thread's
	report, err := os.OpenFile(args[3], os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		os.Exit(notEntered)
	}
	fail := func(status int, words string) {
		_, _ = report.WriteString(words)
		os.Exit(status)
	}
	if err := show(own); err != nil {
		fail(notEntered, err.Error())
	}
	if err := os.Chdir(directory); err != nil {
		fail(notEntered, err.Error())
	}
	if program == "" {
		return nil
	}
	if how == byUser {
		if err := dropCapabilities(); err != nil {
			fail(notEntered, err.Error())
		}
	}
	err = syscall.Exec(program, args[5:], os.Environ())
	number, _ := err.(syscall.Errno)
	fail(126, execWords+strconv.Itoa(int(number)))
	return nil
}

// execError is the error in a report of a program that exec did not start.
func execError(report string) (error, bool) {
	words, found := strings.CutPrefix(report, execWords)
	number, err := strconv.Atoi(words)
	return syscall.Errno(number), found && err == nil
}

// show makes /nix that of the store in this process's mount namespace.
func show(own string) error {
	// What is mounted here is seen nowhere else.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: /: %w", err)
	}
	nix := filepath.Join(own, "nix")
	if info, err := os.Stat("/nix"); err == nil && info.IsDir() {
		return bind(nix, "/nix")
	}
	// Nobody but root may make a directory in /. So another root directory, with a /nix and everything that is in /.
	root := filepath.Join(own, "root")
	if err := syscall.Mount("none", root, "tmpfs", 0, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount: %s: %w", root, err)
	}
	// Else it would be shown once more below itself.
	if err := syscall.Mount("none", root, "", syscall.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("mount: %s: %w", root, err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		there, here := "/"+entry.Name(), filepath.Join(root, entry.Name())
		if entry.Type()&os.ModeSymlink != 0 {
			if target, err := os.Readlink(there); err == nil {
				_ = os.Symlink(target, here)
			}
		} else if entry.IsDir() && os.Mkdir(here, 0o755) == nil {
			// What cannot be shown, a dead network file system for instance, is an empty directory; what the program
			// needs of it, it will miss by itself.
			_ = bind(there, here)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "nix"), 0o755); err != nil {
		return err
	}
	if err := bind(nix, filepath.Join(root, "nix")); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	_ = os.Chmod(".", 0o555)
	// The old root comes to lie on the new one (pivot_root(2)).
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	return os.Chdir("/")
}

func bind(from, to string) error {
	if err := syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("mount: %s: %w", to, err)
	}
	return nil
}

// dropCapabilities leaves none to what this thread becomes.
func dropCapabilities() error {
	header := struct {
		version uint32
		pid     int32
	}{version: 0x20080522} // _LINUX_CAPABILITY_VERSION_3
	var none [2]struct{ effective, permitted, inheritable uint32 }
	_, _, number := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	if number != 0 {
		return fmt.Errorf("capset: %w", number)
	}
	return nil
}

// touchLink sets the times of a link itself.
func touchLink(path string) {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return
	}
	const here, noFollow = -100, 0x100 // AT_FDCWD, AT_SYMLINK_NOFOLLOW
	at := here
	_, _, _ = syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(at), uintptr(unsafe.Pointer(name)), 0, noFollow, 0, 0)
}
