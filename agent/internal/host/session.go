// Package host has the three processes of an agent: the program of a session, which hands its standard streams over;
// the guardian, which ends what a dead agent left behind; and the agent itself, which serves the session.
package host

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"remote-runner/agent/internal/base"
)

// words is the message that a session's program sends to the agent with its standard streams.
type words struct {
	Nonce   string `json:"nonce"`
	Epoch   uint64 `json:"epoch"`
	Address string `json:"address"`
}

// The files of a session in BASE/agents.
func socketName(session string) string { return session + ".sock" }
func bootName(session string) string   { return session + ".boot" }
func logName(session string) string    { return session + ".log" }

// Session is the program `session BASE NONCE SESSION EPOCH`: it passes its standard streams to the session's agent, which it
// starts in the first epoch, and ends when the agent closes them.
func Session(args []string) error {
	if len(args) != 4 || !base.IsName(args[2]) {
		return fmt.Errorf("usage: agent session BASE NONCE SESSION EPOCH")
	}
	directory, nonce, session := base.Directory(args[0]), args[1], args[2]
	epoch, err := strconv.ParseUint(args[3], 10, 63)
	if err != nil || epoch == 0 {
		return fmt.Errorf("%q is no epoch", args[3])
	}
	say := func(format string, what ...any) { // after anything already on the line
		fmt.Printf("\n%s %s\n", nonce, strings.ReplaceAll(fmt.Sprintf(format, what...), "\n", " "))
	}
	// A socket's path must be shorter than about 100 bytes.
	if err := os.Chdir(directory.Agents()); err != nil {
		say("fault directory %v", err)
		return err
	}
	agent, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketName(session), Net: "unix"})
	switch {
	case err == nil:
	case epoch > 1:
		say("gone")
		return nil
	default:
		if boot, err := os.ReadFile(bootName(session)); err == nil && string(boot) != base.BootID() {
			say("fault directory the session %s is another machine's", session)
			return fmt.Errorf("%s is another machine's", socketName(session))
		}
		if agent, err = startGuardian(directory, session); err != nil {
			say("fault program the agent cannot be started: %v", err)
			return err
		}
	}
	defer agent.Close()
	text, err := json.Marshal(words{Nonce: nonce, Epoch: epoch, Address: ownAddress(os.Getenv("SSH_CONNECTION"))})
	if err != nil {
		return err
	}
	if _, _, err = agent.WriteMsgUnix(text, syscall.UnixRights(0, 1, 2), nil); err == nil {
		_, err = agent.Read(make([]byte, 1))
	}
	if err != nil {
		say("fault program the agent took nothing; its last words may be in %s", filepath.Join(directory.Agents(), logName(session)))
		return fmt.Errorf("handing over: %w", err)
	}
	_, _ = agent.Read(make([]byte, 1)) // until the agent closes it
	return nil
}

// ownAddress is the host's address in SSH_CONNECTION: client, its port, host, its port.
func ownAddress(connection string) string {
	if fields := strings.Fields(connection); len(fields) == 4 {
		return fields[2]
	}
	return ""
}

// startGuardian starts the guardian and the agent, and returns the agent's first connection.
func startGuardian(directory base.Directory, session string) (*net.UnixConn, error) {
	program, err := self()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	defer ours.Close() // FileConn has one of its own
	log, err := os.OpenFile(logName(session), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	guardian := exec.Command(program, "serve", string(directory), session)
	guardian.Stdout, guardian.Stderr = log, log
	guardian.ExtraFiles = []*os.File{theirs}
	guardian.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := guardian.Start(); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// self returns this program's path. The bootstrap starts it by its full path, so /proc is not needed.
func self() (string, error) {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	return os.Executable()
}

func socketPair() (*os.File, *os.File, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, err
	}
	syscall.CloseOnExec(pair[0])
	syscall.CloseOnExec(pair[1])
	return os.NewFile(uintptr(pair[0]), "session"), os.NewFile(uintptr(pair[1]), "agent"), nil
}
