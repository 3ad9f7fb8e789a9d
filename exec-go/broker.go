package main

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The protocol is in remote_runner/broker/protocol.py.
const (
	protocol      = "rrb1"
	answerBytes   = len(protocol) + 1
	answerTakes   = 'y'
	answerStale   = 's'
	startVariable = "REMOTE_RUNNER_BROKER"
	// A broker takes an instance in milliseconds. This limits the wait for one that was stopped, or hangs at its start.
	patience = 30 * time.Second
	attempts = 3
	backlog  = 4096
)

var (
	errNotTaken = errors.New("it ended before it took the instance")
	errSilent   = errors.New("it says nothing within " + patience.String())
)

// handOver lets a broker run the instance and returns its exit status. On error, nothing of the instance has started.
func handOver(instance command) (int, error) {
	place, err := newPlace(instance)
	if err != nil {
		return 0, err
	}
	for attempt := 0; attempt < attempts; attempt++ {
		connection, started, err := place.reach()
		if err == nil {
			answer, failure := readAnswer(connection)
			if failure == nil && answer == answerTakes {
				return follow(connection, instance.typed())
			}
			syscall.Close(connection)
			if failure == nil && answer == answerStale {
				continue // its code has changed, and it no longer listens
			}
			err = failure
		}
		if started != 0 && (err == errNotTaken || err == errSilent) {
			return 0, place.explain(started, err)
		}
		if err != errNotTaken {
			return 0, err
		}
	}
	return 0, errors.New(strconv.Itoa(attempts) + " of them ended before one took it")
}

// A place is where a command's broker listens; it depends on everything that the broker is started with.
type place struct {
	command
	socket, log, lock string
	environ           []string
}

func newPlace(instance command) (place, error) {
	runtimeDir, err := runtimeDirectory()
	if err != nil {
		return place{}, err
	}
	for _, name := range []string{"broker", "locks"} {
		if err := makeOwn(filepath.Join(runtimeDir, name)); err != nil {
			return place{}, err
		}
	}
	environ := []string{}
	for _, variable := range os.Environ() {
		if isForInterpreter(variable) {
			environ = append(environ, variable)
		}
	}
	sort.Strings(environ)
	whole := append(append([]string{protocol, instance.directory}, instance.words...), environ...)
	key := keyOf(strings.Join(whole, "\x00"))
	socket := filepath.Join(runtimeDir, "broker", key)
	lock := filepath.Join(runtimeDir, "locks", "broker-"+key)
	return place{instance, socket, socket + ".log", lock, environ}, nil
}

// keyOf is 64-bit FNV-1a in hexadecimal. Importing any hash of the standard library's crypto packages takes as long as
// everything else before main.
func keyOf(text string) string {
	hash := uint64(0xcbf29ce484222325)
	for i := 0; i < len(text); i++ {
		hash = (hash ^ uint64(text[i])) * 0x100000001b3
	}
	return strconv.FormatUint(hash, 16)
}

// isForInterpreter reports whether a variable affects how an interpreter starts. The others belong to the instance.
func isForInterpreter(variable string) bool {
	name := strings.SplitN(variable, "=", 2)[0]
	for _, other := range []string{"PATH", "HOME", "LANG", "TZ", "REMOTE_RUNNER_DEBUG"} {
		if name == other {
			return true
		}
	}
	for _, prefix := range []string{"LC_", "PYTHON", "LD_", "DYLD_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// reach connects to the broker. If none listens, exactly one of all launchers starts it, and gets its process id.
func (place place) reach() (connection, started int, err error) {
	if connection, err = connect(place.socket); err == nil {
		return connection, 0, nil
	}
	lock, err := acquire(place.lock, patience)
	if err != nil {
		return 0, 0, err
	}
	defer lock.release()
	if connection, err = connect(place.socket); err == nil {
		return connection, 0, nil // another launcher was first
	}
	listener, err := place.listen()
	if err != nil {
		return 0, 0, err
	}
	started, err = place.start(listener)
	syscall.Close(listener)
	if err != nil {
		os.Remove(place.socket)
		return 0, 0, err
	}
	if connection, err = connect(place.socket); err != nil {
		return 0, started, errNotTaken
	}
	return connection, started, nil
}

// listen creates the socket before there is a process behind it, so that other launchers connect and wait.
func (place place) listen() (int, error) {
	fd, err := unixSocket()
	if err != nil {
		return 0, err
	}
	fresh := place.socket + ".new"
	os.Remove(fresh) // left by a launcher that was killed here
	umask := syscall.Umask(0o177)
	err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: fresh})
	syscall.Umask(umask)
	if err == nil {
		err = syscall.Listen(fd, backlog)
	}
	if err == nil {
		err = os.Rename(fresh, place.socket)
	}
	if err != nil {
		syscall.Close(fd)
		os.Remove(fresh)
		return 0, at(place.socket, err)
	}
	return fd, nil
}

func (place place) start(listener int) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	log, err := os.OpenFile(place.log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	var socket syscall.Stat_t
	if err := syscall.Stat(place.socket, &socket); err != nil {
		return 0, err
	}
	if err := keepDescriptors(); err != nil {
		return 0, err
	}
	directory := place.directory
	if directory == "" {
		directory = "/"
	}
	pid, err := syscall.ForkExec(place.words[0], place.words, &syscall.ProcAttr{
		Dir:   directory,
		Env:   append(place.environ, startVariable+"="+strconv.FormatUint(uint64(socket.Ino), 10)+" "+place.socket),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), uintptr(listener)}, // which becomes descriptor 3
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, at(place.words[0], err)
	}
	return pid, nil
}

// keepDescriptors keeps descriptors that this process inherited by chance (a lock, a pipe) out of the broker.
func keepDescriptors() error {
	names, err := os.ReadDir("/dev/fd")
	if err != nil {
		return err
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// explain ends the broker that was started here and took nothing, and returns what is known of it.
func (place place) explain(pid int, reason error) error {
	syscall.Kill(pid, syscall.SIGKILL)
	var status syscall.WaitStatus
	ignoringInterrupts(func() error { _, err := syscall.Wait4(pid, &status, 0, nil); return err })
	said, _ := os.ReadFile(place.log)
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return errors.New(reason.Error() + ": " + last)
	}
	return reason
}

func unixSocket() (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}

func setLimit(fd, which int, limit time.Duration) error {
	value := syscall.NsecToTimeval(limit.Nanoseconds())
	return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, which, &value)
}

// connect waits while the listener's queue is full, which package net would report as an error.
func connect(socket string) (int, error) {
	fd, err := unixSocket()
	if err != nil {
		return 0, err
	}
	if err = setLimit(fd, syscall.SO_SNDTIMEO, patience); err == nil {
		err = ignoringInterrupts(func() error { return syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}) })
	}
	if err != nil {
		syscall.Close(fd)
		return 0, at(socket, err)
	}
	return fd, nil
}

// readAnswer reads the broker's first message: whether it takes the instance.
func readAnswer(connection int) (byte, error) {
	if err := setLimit(connection, syscall.SO_RCVTIMEO, patience); err != nil {
		return 0, err
	}
	answer := make([]byte, answerBytes)
	for read := 0; read < len(answer); {
		count := 0
		err := ignoringInterrupts(func() (err error) { count, err = syscall.Read(connection, answer[read:]); return })
		if err == syscall.EAGAIN {
			return 0, errSilent
		}
		if err != nil || count == 0 {
			return 0, errNotTaken
		}
		read += count
	}
	if string(answer[:len(protocol)]) != protocol {
		return 0, errors.New("it speaks " + strconv.Quote(string(answer[:len(protocol)])) + ", and this launcher " + strconv.Quote(protocol))
	}
	kind := answer[len(protocol)]
	if kind != answerTakes && kind != answerStale {
		return 0, errors.New("it takes no instance")
	}
	return kind, setLimit(connection, syscall.SO_RCVTIMEO, 0)
}

// follow hands the instance over and waits for its end, forwarding signals.
func follow(connection int, typed string) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	request, err := request()
	if err == nil {
		err = send(connection, request)
	}
	if err != nil {
		syscall.Close(connection) // it starts nothing before it has the whole request
		return 0, at("the instance cannot be handed over", err)
	}
	go func() {
		for number := range signals {
			syscall.Write(connection, []byte{byte(number.(syscall.Signal))})
		}
	}()
	status := []byte{0}
	// By the poller, though that has to be made ready: while a system call blocks, the scheduler's watchdog wakes up 50
	// times within 10 ms, which is a tenth of what all of this program costs.
	syscall.SetNonblock(connection, true)
	count, err := os.NewFile(uintptr(connection), "").Read(status)
	if err != nil || count == 0 {
		run := os.Getenv("TEST_RUN")
		fail("the broker that ran this instance ended: it was killed, or has crashed",
			"run it again; the application ends on its host by itself, `"+typed+" fetch --run "+run+"` brings what it had "+
				"written, `"+typed+" clean --run "+run+"` removes it")
	}
	return int(status[0]), nil
}

func request() ([]byte, error) {
	directory, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	fields := append([]string{strconv.FormatInt(int64(umask), 8), directory}, os.Environ()...)
	body := strings.Join(fields, "\x00") + "\x00"
	size := len(body)
	head := append([]byte(protocol), byte(size>>24), byte(size>>16), byte(size>>8), byte(size))
	return append(head, body...), nil
}

// send sends the whole request, with stdin, stdout and stderr attached to its first bytes.
func send(connection int, request []byte) error {
	rights := syscall.UnixRights(0, 1, 2)
	for len(request) > 0 {
		count := 0
		err := ignoringInterrupts(func() (err error) {
			count, err = syscall.SendmsgN(connection, request, rights, nil, 0)
			return
		})
		if err != nil {
			return err
		}
		request, rights = request[count:], nil
	}
	return nil
}
