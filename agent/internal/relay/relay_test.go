package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/wire"
	"remote-runner/agent/internal/wiretest"
)

func serve(t testing.TB) *wiretest.Client {
	service := &Service{RunOfSocket: func(uint64) string { return "r1-single-0" }}
	client := wiretest.New(t, func(ctx context.Context, stream *wire.Stream, open wire.Message) error {
		if strings.Contains(string(open.Head), "listen") {
			return service.Listen(ctx, stream, open)
		}
		return service.Dial(ctx, stream, open)
	})
	service.Open = client.Session.Open
	return client
}

func listenAt(t testing.TB, client *wiretest.Client, anyUser bool) (*wiretest.Stream, int) {
	t.Helper()
	stream := client.Open(map[string]any{"verb": "listen", "port": 0, "any_user": anyUser})
	said := stream.Receive()
	if said["listening"] == nil {
		t.Fatalf("said %v, failed by %v", said, stream.Failure())
	}
	return stream, int(said["listening"].(float64))
}

func dial(t testing.TB, network, address string) *net.TCPConn {
	t.Helper()
	connection, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection.(*net.TCPConn)
}

func TestBothDirectionsAndHalfClose(t *testing.T) {
	client := serve(t)
	listener, port := listenAt(t, client, false)
	for _, address := range []string{"127.0.0.1", "[::1]"} {
		if address == "[::1]" {
			if six, err := net.Listen("tcp6", "[::1]:0"); err != nil {
				continue
			} else {
				six.Close()
			}
		}
		connection := dial(t, "tcp", fmt.Sprintf("%s:%d", address, port))
		stream := client.Accept()
		if stream.Head["accepted"] != float64(listener.ID) {
			t.Errorf("%v, the listener's stream is %d", stream.Head, listener.ID)
		}
		io.WriteString(connection, "ask")
		if got := stream.Read(0, 3); got != "ask" {
			t.Errorf("got %q", got)
		}
		// What asks may be done with asking, and waits for the answer.
		connection.CloseWrite()
		if _, ended := stream.ReadAll(0); !ended {
			t.Error("no END for a half-close")
		}
		long := strings.Repeat("answer", 100_000)
		go func() {
			stream.Write(0, []byte(long))
			stream.End(0)
		}()
		got, err := io.ReadAll(connection)
		if err != nil || string(got) != long {
			t.Errorf("%d of %d bytes, %v", len(got), len(long), err)
		}
		if failure := stream.Failure(); failure != nil {
			t.Errorf("failed by %v", failure)
		}
	}
}

func TestWhoseAConnectionIsIsToldWhereItIsAskedFor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	client := serve(t)
	for _, anyUser := range []bool{false, true} {
		listener := client.Open(map[string]any{"verb": "listen", "port": 0, "any_user": anyUser, "tell_runs": true})
		port := int(listener.Receive()["listening"].(float64))
		connection := dial(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		stream := client.Accept()
		of := listener.Receive()["of"].(map[string]any)
		if of["stream"] != float64(stream.ID) || of["run"] != "r1-single-0" {
			t.Errorf("%v of stream %d", of, stream.ID)
		}
		connection.Close()
	}
}

func TestClientEndsFirst(t *testing.T) {
	client := serve(t)
	_, port := listenAt(t, client, false)
	connection := dial(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	stream := client.Accept()
	stream.Write(0, []byte("all"))
	stream.End(0)
	if got, err := io.ReadAll(connection); string(got) != "all" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(connection, "still")
	if got := stream.Read(0, 5); got != "still" {
		t.Errorf("got %q", got)
	}
	// The client's CLOSE comes while nothing is read or written any more.
	stream.Close()
	connection.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, err := connection.Write([]byte("x")); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	stream.Failure()
}

func TestCloseOfTheListenerEndsItsConnections(t *testing.T) {
	client := serve(t)
	listener, port := listenAt(t, client, false)
	connection := dial(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	stream := client.Accept()
	listener.Close()
	stream.Failure()
	if _, err := connection.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if late, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		late.Close()
		t.Error("somebody still listens")
	}
}

func TestVanishedApplication(t *testing.T) {
	client := serve(t)
	_, port := listenAt(t, client, false)
	connection := dial(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	stream := client.Accept()
	connection.SetLinger(0) // a reset
	connection.Close()
	stream.Failure()
}

func TestTakenPort(t *testing.T) {
	client := serve(t)
	_, port := listenAt(t, client, false)
	failure := client.Open(map[string]any{"verb": "listen", "port": port}).Failure()
	if failure["error"] != "taken" || failure["port"] != float64(port) {
		t.Errorf("failed by %v", failure)
	}
}

func TestOnlyAnyUserIsLetInFromEverywhere(t *testing.T) {
	failure := serve(t).Open(map[string]any{"verb": "listen", "port": 0, "everywhere": true}).Failure()
	if failure["error"] != "breach" {
		t.Errorf("failed by %v", failure)
	}
}

func TestDial(t *testing.T) {
	client := serve(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	go func() {
		connection, err := listener.Accept()
		if err == nil {
			io.Copy(connection, connection)
			connection.Close()
		}
	}()
	stream := client.Open(map[string]any{"verb": "dial", "host": "127.0.0.1", "port": port})
	if said := stream.Receive(); said["connected"] != true {
		t.Fatalf("said %v", said)
	}
	stream.Write(0, []byte("echo"))
	stream.End(0)
	if got, ended := stream.ReadAll(0); got != "echo" || !ended {
		t.Errorf("%q, %v", got, ended)
	}
	stream.Failure()
	listener.Close()
	failure := client.Open(map[string]any{"verb": "dial", "host": "127.0.0.1", "port": port}).Failure()
	if failure["error"] != "refused" {
		t.Errorf("failed by %v", failure)
	}
}

func TestPeerUser(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	type connect func() (connection io.Closer)
	for name, connect := range map[string]connect{
		"v4":        func() io.Closer { return dial(t, "tcp4", fmt.Sprintf("127.0.0.1:%d", port)) },
		"v4-mapped": func() io.Closer { return dialMapped(t, port) },
		"half-closed": func() io.Closer {
			connection := dial(t, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
			connection.CloseWrite()
			return connection
		},
	} {
		t.Run(name, func(t *testing.T) {
			ours := connect()
			theirs, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			near, far := addressOf(theirs.RemoteAddr()), addressOf(theirs.LocalAddr())
			for _, ask := range askers {
				if found, err := ask(near, far); found.uid != os.Getuid() || found.inode == 0 || err != nil {
					t.Errorf("%v, %v", found, err)
				}
			}
			ours.Close()
			if hasSent(theirs.(*net.TCPConn)) {
				t.Error("it has sent nothing")
			}
			// Nobody's now; a kernel that still knows it must not say that it is root's.
			if found, err := findPeer(near, far); found != noPeer || err != nil {
				t.Errorf("%v, %v, after it was closed", found, err)
			}
		})
	}
}

func TestOneThatOnlyLooked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, said := range []string{"", "something"} {
		look := dial(t, "tcp4", listener.Addr().String())
		io.WriteString(look, said)
		look.Close()
		connection, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		if hasSent(connection.(*net.TCPConn)) != (said != "") {
			t.Errorf("wrong about %q", said)
		}
		// No stream to tell of it, so telling would be a fault.
		found, err := findPeer(addressOf(connection.RemoteAddr()), addressOf(connection.LocalAddr()))
		if said == "" && (&listening{}).mayEnter(connection, found.uid, err) {
			t.Error("it was let in")
		}
	}
}

func dialMapped(t *testing.T, port int) io.Closer {
	socket, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip("no IPv6")
	}
	address := &syscall.SockaddrInet6{Port: port, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
	if err := syscall.Connect(socket, address); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(socket), "mapped")
}

func TestAnotherUser(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root, to become another user")
	}
	client := serve(t)
	closedOne, port := listenAt(t, client, false)
	openOne, openPort := listenAt(t, client, true)
	asUser := func(port int) {
		connect(t, 65534, port)
	}
	asUser(port)
	asUser(port)
	said := closedOne.Receive()
	if refused, _ := said["refused"].(map[string]any); refused["uid"] != float64(65534) {
		t.Errorf("said %v", said)
	}
	asUser(openPort)
	if stream := client.Accept(); stream.Head["accepted"] != float64(openOne.ID) {
		t.Errorf("accepted by %v", stream.Head)
	}
	closedOne.Close()
	if said := closedOne.Receive(); said != nil {
		t.Errorf("told again: %v", said)
	}
}

// connect connects as another user, and waits for the end of the connection or until data could come.
func connect(t *testing.T, uid, port int) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(socket) })
	if err := syscall.Fchown(socket, uid, -1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
}

func TestManyConnections(t *testing.T) {
	const many = 200
	client := serve(t)
	_, port := listenAt(t, client, false)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	connections := make([]*net.TCPConn, many)
	streams := map[uint32]*wiretest.Stream{}
	for i := range connections {
		connections[i] = dial(t, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		stream := client.Accept()
		streams[stream.ID] = stream
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d goroutines and %d bytes of heap and stack for each connection, with both ends and the client",
		(runtime.NumGoroutine()-goroutines)/many, int(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/many)
	if more := runtime.NumGoroutine() - goroutines; more > 2*many+10 {
		t.Errorf("%d goroutines more", more)
	}
	var all sync.WaitGroup
	for _, connection := range connections {
		all.Add(1)
		go func(connection *net.TCPConn) {
			defer all.Done()
			io.WriteString(connection, "here\n")
			buffer := make([]byte, 5)
			if _, err := io.ReadFull(connection, buffer); err != nil || string(buffer) != "here\n" {
				t.Errorf("%q, %v", buffer, err)
			}
		}(connection)
	}
	for _, stream := range streams {
		stream.Write(0, []byte(stream.Read(0, 5)))
	}
	all.Wait()
}
