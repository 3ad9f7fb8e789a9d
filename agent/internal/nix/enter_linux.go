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

// How a program is shown the user's own store.
const (
	byRoot = "root" // a mount namespace; without a user namespace only root may create one
	byUser = "kept" // with a user namespace around it, which keeps the user's id
)

// ways returns the ways to try: in a container root may lack root's rights.
func ways() []string {
	if os.Getuid() == 0 {
		return []string{byRoot, byUser}
	}
	return []string{byUser}
}

// enter changes a process to be started so that it starts Enter in new namespaces.
func enter(spec *process.Spec, how string, own store.UserStore, directory, report, program string) {
	const self = "/proc/self/exe" // works after the file was removed
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
	notEntered = 125 // as env(1) exits when the program was not started
	execWords  = "exec "
)

// Enter is the program `enter HOW STORE DIRECTORY REPORT PROGRAM [ARGUMENT…]` (the first argument is argv[0]): it mounts
// the user's own store at /nix, and executes the program in the directory. Failures go to the file REPORT. With an empty
// PROGRAM it only tests whether that works.
func Enter(args []string) error {
	if len(args) < 5 {
		return fmt.Errorf("usage: agent enter HOW STORE DIRECTORY REPORT PROGRAM [ARGUMENT…]")
	}
	how, own, directory, program := args[0], args[1], args[2], args[4]
	runtime.LockOSThread() // capabilities belong to threads
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

// execError returns the error in the report when exec failed.
func execError(report string) (error, bool) {
	words, found := strings.CutPrefix(report, execWords)
	number, err := strconv.Atoi(words)
	return syscall.Errno(number), found && err == nil
}

// show mounts the store at /nix in this process's mount namespace.
func show(own string) error {
	// Mounts made here must not propagate.
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: /: %w", err)
	}
	nix := filepath.Join(own, "nix")
	if info, err := os.Stat("/nix"); err == nil && info.IsDir() {
		return bind(nix, "/nix")
	}
	// Only root can create /nix, so this makes another root directory with a /nix and everything that is in /.
	root := filepath.Join(own, "root")
	if err := syscall.Mount("none", root, "tmpfs", 0, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount: %s: %w", root, err)
	}
	// It would appear below itself.
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
			// What cannot be mounted, such as a dead network file system, becomes an empty directory; a program that needs
			// it will say so.
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

// dropCapabilities leaves the executed program no capabilities.
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

// touchLink sets a symbolic link's own times.
func touchLink(path string) {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return
	}
	const here, noFollow = -100, 0x100 // AT_FDCWD, AT_SYMLINK_NOFOLLOW
	at := here
	_, _, _ = syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(at), uintptr(unsafe.Pointer(name)), 0, noFollow, 0, 0)
}
