// Package relay carries connections between the host's programs and the client: those accepted on the agent's loopback
// listeners, and those that the agent dials.
package relay

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/wire"
)

const (
	// nobody stands for the user of a socket that no process has any more.
	nobody = -1
	// How many free ports to try while they are taken on ::1.
	freePorts = 8
	dialTime  = 30 * time.Second
)

// Service serves the verbs about connections.
type Service struct {
	// Open opens a stream from the agent, as wire.Session's method does.
	Open func(head any, fields ...[]byte) (*wire.Stream, error)
	// RunOfSocket is process.Keeper's.
	RunOfSocket func(inode uint64) string
}

// peer is who has the other end of a connection: the user, and the socket's inode, 0 if unknown.
type peer struct {
	uid   int
	inode uint64
}

var noPeer = peer{uid: nobody}

// Listen is the verb `listen`: it relays connections until the client closes its stream.
func (s *Service) Listen(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Port       int
		AnyUser    bool `json:"any_user"`
		Everywhere bool
		TellRuns   bool `json:"tell_runs"`
	}
	if err := json.Unmarshal(open.Head, &request); err != nil || request.Port < 0 || request.Port > 65535 ||
		request.Everywhere && !request.AnyUser {
		return wire.Fail("breach", "nothing can listen by %s", open.Head)
	}
	listeners, port, err := listen(ctx, request.Port, request.Everywhere)
	if err != nil {
		return err
	}
	if err := stream.Send(map[string]any{"listening": port}); err != nil {
		closeAll(listeners)
		return err
	}
	listening := &listening{service: s, stream: stream, anyUser: request.AnyUser, tellRuns: request.TellRuns, open: map[net.Conn]bool{}}
	var accepting sync.WaitGroup
	for _, listener := range listeners {
		accepting.Add(1)
		go func(listener net.Listener) {
			defer accepting.Done()
			listening.accept(ctx, listener)
		}(listener)
	}
	<-ctx.Done()
	closeAll(listeners)
	accepting.Wait()
	listening.end()
	return nil
}

// listen listens on the port on 127.0.0.1, and on ::1 where possible, or else on all addresses; 0 is any free port.
func listen(ctx context.Context, port int, everywhere bool) ([]net.Listener, int, error) {
	// On the loopback, keepalives would only wake the machine.
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	if everywhere {
		all, err := config.Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(port)))
		if err != nil {
			return nil, 0, wire.Fail("taken", "nothing can listen at port %d: %v", port, err).With("port", port)
		}
		return []net.Listener{all}, all.Addr().(*net.TCPAddr).Port, nil
	}
	for try := 1; ; try++ {
		four, err := config.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return nil, 0, wire.Fail("taken", "nothing can listen at port %d: %v", port, err).With("port", port)
		}
		got := four.Addr().(*net.TCPAddr).Port
		six, err := config.Listen(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(got)))
		if err == nil {
			return []net.Listener{four, six}, got, nil
		}
		// Whoever has that port on ::1 would get connections to "localhost" that are meant for us.
		if port != 0 || !errors.Is(err, syscall.EADDRINUSE) || try == freePorts {
			return []net.Listener{four}, got, nil
		}
		four.Close()
	}
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		listener.Close()
	}
}

// listening is one listener's work.
type listening struct {
	service  *Service
	stream   *wire.Stream
	anyUser  bool
	tellRuns bool
	relays   sync.WaitGroup

	mutex   sync.Mutex
	open    map[net.Conn]bool // guarded by mutex
	refused bool              // guarded by mutex
}

func (l *listening) accept(ctx context.Context, listener net.Listener) {
	for {
		connection, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				connection.Close()
			}
			return
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, perhaps: one may be free again soon.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		var found peer
		if l.tellRuns || !l.anyUser {
			found, err = findPeer(addressOf(connection.RemoteAddr()), addressOf(connection.LocalAddr()))
		}
		if !l.anyUser && !l.mayEnter(connection, found.uid, err) {
			connection.Close()
			continue
		}
		l.mutex.Lock()
		l.open[connection] = true
		l.mutex.Unlock()
		l.relays.Add(1)
		go func() {
			defer l.relays.Done()
			l.relay(connection.(*net.TCPConn), found.inode)
			l.mutex.Lock()
			delete(l.open, connection)
			l.mutex.Unlock()
		}()
	}
}

// mayEnter reports whether the other end is a process of the agent's user; the first refusal is reported to the client.
func (l *listening) mayEnter(connection net.Conn, uid int, err error) bool {
	if err == nil && uid == os.Getuid() {
		return true
	}
	if err == nil && uid == nobody && !hasSent(connection.(*net.TCPConn)) {
		return false // a port probe
	}
	l.mutex.Lock()
	told := l.refused
	l.refused = true
	l.mutex.Unlock()
	if !told {
		said := map[string]any{"uid": uid}
		if uid == nobody {
			said["uid"] = nil
		}
		if err != nil {
			said["problem"] = err.Error()
		}
		_ = l.stream.Send(map[string]any{"refused": said})
	}
	return false
}

// hasSent reports whether there is unread data.
func hasSent(connection *net.TCPConn) bool {
	raw, err := connection.SyscallConn()
	if err != nil {
		return false
	}
	size := 0
	_ = raw.Control(func(fd uintptr) {
		size, _, _ = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return size > 0
}

func addressOf(address net.Addr) netip.AddrPort {
	return address.(*net.TCPAddr).AddrPort()
}

func (l *listening) relay(connection *net.TCPConn, inode uint64) {
	stream, err := l.service.Open(map[string]any{"accepted": l.stream.ID()})
	if err != nil {
		connection.Close()
		return
	}
	if l.tellRuns && inode != 0 {
		l.relays.Add(1)
		go func() {
			defer l.relays.Done()
			if run := l.service.RunOfSocket(inode); run != "" {
				_ = l.stream.Send(map[string]any{"of": map[string]any{"stream": stream.ID(), "run": run}})
			}
		}()
	}
	_ = stream.Close(join(stream, connection))
}

// end closes every connection, and waits for the relays.
func (l *listening) end() {
	l.mutex.Lock()
	for connection := range l.open {
		connection.Close()
	}
	l.mutex.Unlock()
	l.relays.Wait()
}

// Whose is the verb `whose`: it finds the run whose process has a connection on this machine, by the ports of both ends.
func (s *Service) Whose(_ context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ Near, Far uint16 }
	if err := open.Decode(&request); err != nil {
		return err
	}
	run := ""
	for _, loopback := range [...]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		found, err := findPeer(netip.AddrPortFrom(loopback, request.Near), netip.AddrPortFrom(loopback, request.Far))
		if err == nil && found.inode != 0 {
			run = s.RunOfSocket(found.inode)
			break
		}
	}
	return stream.Send(map[string]any{"run": run})
}

// Dial is the verb `dial`: it connects to an address that the host reaches.
func (s *Service) Dial(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Host string
		Port int
	}
	if err := json.Unmarshal(open.Head, &request); err != nil || request.Port < 1 || request.Port > 65535 {
		return wire.Fail("breach", "nothing can be dialled by %s", open.Head)
	}
	address := net.JoinHostPort(request.Host, strconv.Itoa(request.Port))
	dialer := net.Dialer{Timeout: dialTime}
	dialer.SetMultipathTCP(false)
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return wire.Fail("refused", "%s cannot be reached from here: %v", address, err)
	}
	if err := stream.Send(map[string]any{"connected": true}); err != nil {
		connection.Close()
		return err
	}
	return join(stream, connection.(*net.TCPConn))
}

// join copies in both directions until both have ended or one has failed, and closes the connection.
//
// It takes one goroutine besides the caller's, and no buffer while nothing arrives.
func join(stream *wire.Stream, connection *net.TCPConn) error {
	defer connection.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if send(stream.Writer(0, false), connection) != nil {
			connection.Close()
			// The reader below learns of it by the client's CLOSE or its next write.
			_ = stream.Close(nil)
		}
	}()
	if receive(connection, stream.Reader(0)) == nil && connection.CloseWrite() == nil {
		select {
		case <-ended:
			return nil
		case <-stream.Cancelled():
		}
	}
	connection.Close()
	<-ended
	return nil
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// send copies from the connection to the stream, and sends END at its end.
func send(lane io.WriteCloser, connection *net.TCPConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var buffer *[32 << 10]byte
		var size int
		var problem error
		err := raw.Read(func(fd uintptr) bool {
			buffer = buffers.Get().(*[32 << 10]byte)
			for {
				size, problem = syscall.Read(int(fd), buffer[:])
				if problem != syscall.EINTR {
					break
				}
			}
			if problem == syscall.EAGAIN {
				buffers.Put(buffer)
				return false
			}
			return true
		})
		if err != nil {
			return err // the buffer was returned: the last read found nothing
		}
		if problem == nil && size > 0 {
			_, problem = lane.Write(buffer[:size])
		}
		buffers.Put(buffer)
		if problem != nil {
			return problem
		}
		if size == 0 {
			return lane.Close()
		}
	}
}

// receive copies from the stream to the connection. It waits with a small buffer, and takes a large one while more
// arrives than fits.
func receive(connection *net.TCPConn, lane io.Reader) error {
	waiting := make([]byte, 512)
	for {
		size, err := lane.Read(waiting)
		if size > 0 {
			if _, err := connection.Write(waiting[:size]); err != nil {
				return err
			}
		}
		if err == nil && size == len(waiting) {
			err = receiveMuch(connection, lane)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func receiveMuch(connection *net.TCPConn, lane io.Reader) error {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	for {
		size, err := lane.Read(buffer[:])
		if size > 0 {
			if _, err := connection.Write(buffer[:size]); err != nil {
				return err
			}
		}
		if err != nil || size < 512 {
			return err
		}
	}
}
