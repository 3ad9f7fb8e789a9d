package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

const handOverTime = 10 * time.Second

// Agent serves one session from start to end.
type Agent struct {
	Base     base.Directory
	Groups   process.Groups // the process groups that the guardian knows
	Session  *wire.Session
	identity string
	name     string
}

// Serve is the program `agent BASE SESSION`, which the guardian starts. It returns when the session is over and all verbs
// have ended. prepare returns what serves the streams.
func Serve(args []string, identity string, prepare func(*Agent) wire.Handler) error {
	if len(args) != 2 || !base.IsName(args[1]) {
		return fmt.Errorf("usage: agent agent BASE SESSION")
	}
	for _, fd := range []int{firstConnection, groupsPipe} {
		syscall.CloseOnExec(fd)
	}
	_ = syscall.SetNonblock(groupsPipe, true) // deadlines need non-blocking descriptors
	keepThreads(spareThreads)
	a := &Agent{
		Base:     base.Directory(args[0]),
		Groups:   &teller{pipe: os.NewFile(groupsPipe, "guardian")},
		identity: identity,
		name:     args[1],
	}
	handed := os.NewFile(firstConnection, "session")
	first, err := net.FileConn(handed)
	handed.Close()
	if err != nil {
		return fmt.Errorf("the first connection: %w", err)
	}
	handler := prepare(a)
	a.Session = wire.NewSession(handler, wire.Options{Key: a.name})
	listener, err := a.listen()
	if err != nil {
		log.Printf("nobody can attach again: %v", err)
	} else {
		go func() {
			for {
				conn, err := listener.AcceptUnix()
				if err != nil {
					return
				}
				go a.attach(conn)
			}
		}()
	}
	go a.attach(first.(*net.UnixConn))
	if program, err := self(); err == nil {
		if using, err := use(program); err == nil {
			defer using.Close()
		}
	}
	go sweep(a.Base.Agents())

	<-a.Session.Done()
	if listener != nil {
		listener.Close()
		a.remove(socketName(a.name), bootName(a.name))
	}
	a.Session.Wait()
	a.Session.Close()
	if a.Session.Reason() != "breach" { // the log has it
		a.remove(logName(a.name))
	}
	return nil
}

func (a *Agent) remove(names ...string) {
	for _, name := range names {
		os.Remove(filepath.Join(a.Base.Agents(), name))
	}
}

// listen creates the socket for later attachments. An existing one belongs to a dead agent of this machine: the
// session's program has checked.
func (a *Agent) listen() (*net.UnixListener, error) {
	// A socket's path must be shorter than about 100 bytes.
	if err := os.Chdir(a.Base.Agents()); err != nil {
		return nil, err
	}
	defer os.Chdir("/")
	os.Remove(socketName(a.name))
	if err := os.WriteFile(bootName(a.name), []byte(base.BootID()), 0o600); err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketName(a.name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)                     // it would unlink the bare name
	return listener, os.Chmod(socketName(a.name), 0o600) // nobody else can enter the directory anyway
}

// attach takes over a session program's standard streams, and keeps its connection open while they are used.
func (a *Agent) attach(conn *net.UnixConn) {
	said, streams, err := receive(conn)
	if err != nil {
		log.Printf("a session's program: %v", err)
		conn.Close()
		return
	}
	_, _ = conn.Write([]byte{1})
	in, out, words := streams[0], streams[1], streams[2]
	release := func() {
		words.Close()
		conn.Close()
	}
	attachment, err := a.Session.Attach(wire.Transport{
		In: in, Out: &outlet{File: out}, Epoch: said.Epoch,
		Greeting: func(received uint64) []byte { return a.greeting(said, received) },
		Stands:   func() bool { return isRead(words) },
		Release:  release,
	})
	if err != nil {
		if errors.Is(err, wire.ErrOver) {
			fmt.Fprintf(out, "\n%s gone\n", said.Nonce)
		}
		in.Close()
		out.Close()
		release()
		return
	}
	// The program sends nothing more. When it is killed, sshd closes stdin alone, as if the client had ended.
	_, _ = conn.Read(make([]byte, 1))
	attachment.Break()
}

// isRead tells whether somebody reads what is written to stderr. sshd does until the connection ends, also after the
// client was killed, when ssh has stdin and stdout closed.
func isRead(stderr *os.File) bool {
	status, err := stderr.Stat()
	if err != nil || status.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return false // a shell's start-up file has put it elsewhere, which tells nothing
	}
	raw, err := stderr.SyscallConn()
	if err != nil {
		return false
	}
	failed := raw.Control(func(fd uintptr) { _, err = syscall.Write(int(fd), []byte("\n")) })
	return failed == nil && (err == nil || err == syscall.EAGAIN)
}

// receive reads a session program's message and its standard streams, which come with it.
func receive(conn *net.UnixConn) (said words, streams [3]*os.File, err error) {
	_ = conn.SetReadDeadline(time.Now().Add(handOverTime))
	text, control := make([]byte, 4096), make([]byte, 256)
	size, controlSize, flags, _, err := conn.ReadMsgUnix(text, control)
	if err != nil {
		return said, streams, err
	}
	_ = conn.SetReadDeadline(time.Time{})
	var passed []int
	messages, err := syscall.ParseSocketControlMessage(control[:controlSize])
	for i := range messages {
		if fds, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			passed = append(passed, fds...)
		}
	}
	if err == nil {
		err = json.Unmarshal(text[:size], &said)
	}
	if err == nil && (len(passed) != len(streams) || flags&syscall.MSG_CTRUNC != 0) {
		err = fmt.Errorf("%d descriptors came, not %d", len(passed), len(streams))
	}
	if err != nil {
		for _, fd := range passed {
			syscall.Close(fd)
		}
		return said, streams, err
	}
	for i, fd := range passed {
		_ = syscall.SetNonblock(fd, true) // so that reads and writes can be interrupted
		streams[i] = os.NewFile(uintptr(fd), [...]string{"stdin", "stdout", "stderr"}[i])
	}
	return said, streams, nil
}

// greeting is the first line of an attachment.
func (a *Agent) greeting(said words, received uint64) []byte {
	system, machine := uname()
	hostname, _ := os.Hostname()
	name := ""
	if who, err := user.Current(); err == nil {
		name = who.Username
	}
	line, err := json.Marshal(map[string]any{
		"protocol": wire.Protocol, "agent": a.identity, "epoch": said.Epoch, "received": received,
		"base": string(a.Base), "uid": os.Getuid(), "user": name,
		"sysname": system, "machine": machine, "bits": strconv.IntSize, "hostname": hostname,
		"boot": base.BootID(), "pid": os.Getpid(), "address": said.Address,
	})
	if err != nil {
		log.Panicf("the greeting: %v", err) // strings and numbers only
	}
	return []byte(fmt.Sprintf("\n%s agent %s\n", said.Nonce, line))
}
