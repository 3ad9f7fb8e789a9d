// Package wiretest has a client for tests of verbs, over a pipe that never breaks.
package wiretest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"remote-runner/agent/internal/wire"
)

const (
	credit  = 256 << 10
	longest = 20 * time.Second
)

// Client is the other end of a session.
type Client struct {
	Session *wire.Session

	t        testing.TB
	mutex    sync.Mutex // guards all below, and the streams
	changed  *sync.Cond
	toSend   [][]byte
	over     bool
	sent     uint64
	next     uint32
	streams  map[uint32]*Stream
	accepted []*Stream
}

// Stream is one request, or one that the agent opened.
type Stream struct {
	ID   uint32
	Head map[string]any // of the OPEN, if the agent opened it

	client   *Client
	messages []map[string]any
	data     [4][]byte
	ended    [4]bool
	credit   [4]int
	closed   bool // by the agent
	failure  map[string]any
	ours     bool // our CLOSE is sent
}

// New makes a session that is served by handle, and its client. Both end with the test.
func New(t testing.TB, handle wire.Handler) *Client {
	c := &Client{Session: wire.NewSession(handle, wire.Options{}), t: t, next: 1, streams: map[uint32]*Stream{}}
	c.changed = sync.NewCond(&c.mutex)
	in, agentOut := net.Pipe()
	agentIn, out := net.Pipe()
	greeting := func(uint64) []byte { return []byte("hello\n") }
	if _, err := c.Session.Attach(wire.Transport{In: agentIn, Out: agentOut, Epoch: 1, Greeting: greeting}); err != nil {
		t.Fatal(err)
	}
	c.send('H', 0, 0, []byte(`{"protocol":1,"session":"","epoch":1,"received":0,"alive_s":60,"tolerate_s":60}`))
	var done sync.WaitGroup
	done.Add(2)
	go func() { defer done.Done(); c.write(out) }()
	go func() { defer done.Done(); c.read(bufio.NewReader(in)) }()
	t.Cleanup(func() {
		c.Session.Close()
		c.Session.Wait()
		c.mutex.Lock()
		c.over = true
		c.changed.Broadcast()
		c.mutex.Unlock()
		in.Close()
		out.Close()
		done.Wait()
	})
	return c
}

// send is called with the mutex held, or before the client is shared.
func (c *Client) send(kind, lane byte, stream uint32, payload []byte) {
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	frame = binary.BigEndian.AppendUint32(append(frame, kind, lane), stream)
	number := uint64(0)
	if !bytes.ContainsRune([]byte("HAPQ"), rune(kind)) {
		c.sent++
		number = c.sent
	}
	c.toSend = append(c.toSend, append(binary.BigEndian.AppendUint64(frame, number), payload...))
	c.changed.Broadcast()
}

func (c *Client) write(to io.Writer) {
	for {
		c.mutex.Lock()
		for len(c.toSend) == 0 && !c.over {
			c.changed.Wait()
		}
		batch, over := c.toSend, c.over
		c.toSend = nil
		c.mutex.Unlock()
		if over {
			return
		}
		for _, frame := range batch {
			if _, err := to.Write(frame); err != nil {
				return
			}
		}
	}
}

func (c *Client) read(from *bufio.Reader) {
	if _, err := from.ReadString('\n'); err != nil {
		return
	}
	header := make([]byte, 18)
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(header))
		if _, err := io.ReadFull(from, payload); err != nil {
			return
		}
		c.mutex.Lock()
		if number := binary.BigEndian.Uint64(header[10:]); number > 0 {
			c.send('A', 0, 0, binary.BigEndian.AppendUint64(nil, number))
		}
		c.take(header[4], header[5], binary.BigEndian.Uint32(header[6:]), payload)
		c.changed.Broadcast()
		c.mutex.Unlock()
	}
}

func decode(payload []byte) map[string]any {
	head, _, _ := bytes.Cut(payload, []byte{0})
	var said map[string]any
	_ = json.Unmarshal(head, &said)
	return said
}

func (c *Client) take(kind, lane byte, id uint32, payload []byte) {
	if kind == 'O' {
		stream := c.add(id)
		stream.Head = decode(payload)
		c.accepted = append(c.accepted, stream)
		return
	}
	stream := c.streams[id]
	if stream == nil {
		return
	}
	switch kind {
	case 'M':
		stream.messages = append(stream.messages, decode(payload))
	case 'D':
		stream.data[lane] = append(stream.data[lane], payload...)
		if !stream.ours {
			c.send('C', lane, id, binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
		}
	case 'C':
		stream.credit[lane] += int(binary.BigEndian.Uint32(payload))
	case 'E':
		stream.ended[lane] = true
	case 'X':
		stream.closed = true
		stream.failure = decode(payload)
		stream.close()
	}
}

func (c *Client) add(id uint32) *Stream {
	stream := &Stream{ID: id, client: c, credit: [4]int{credit, credit, credit, credit}}
	c.streams[id] = stream
	return stream
}

// wait waits until the condition holds, and fails the test when that takes too long.
func (c *Client) wait(what string, holds func() bool) {
	c.t.Helper()
	late := time.AfterFunc(longest, func() {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		c.changed.Broadcast()
	})
	defer late.Stop()
	began := time.Now()
	for !holds() {
		if time.Since(began) >= longest {
			c.t.Errorf("waited in vain for %s", what)
			panic("the agent does not answer")
		}
		c.changed.Wait()
	}
}

// Open opens a stream.
func (c *Client) Open(head any, fields ...string) *Stream {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	payload, err := json.Marshal(head)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, field := range fields {
		payload = append(append(payload, 0), field...)
	}
	stream := c.add(c.next)
	c.next += 2
	c.send('O', 0, stream.ID, payload)
	return stream
}

// Accept waits for the next stream that the agent opens.
func (c *Client) Accept() *Stream {
	c.t.Helper()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.wait("a stream of the agent", func() bool { return len(c.accepted) > 0 })
	stream := c.accepted[0]
	c.accepted = c.accepted[1:]
	return stream
}

// Send sends a message.
func (s *Stream) Send(head any) {
	payload, err := json.Marshal(head)
	if err != nil {
		s.client.t.Fatal(err)
	}
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.client.send('M', 0, s.ID, payload)
}

// Receive waits for the next message; nil when the agent has closed the stream.
func (s *Stream) Receive() map[string]any {
	s.client.t.Helper()
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.client.wait("a message", func() bool { return len(s.messages) > 0 || s.closed })
	if len(s.messages) == 0 {
		return nil
	}
	said := s.messages[0]
	s.messages = s.messages[1:]
	return said
}

// Write sends on a lane as credit allows; it gives up if the agent has closed the stream.
func (s *Stream) Write(lane byte, data []byte) {
	s.client.t.Helper()
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	for len(data) > 0 {
		s.client.wait("credit", func() bool { return s.credit[lane] > 0 || s.closed })
		if s.closed {
			return
		}
		size := min(len(data), s.credit[lane], 64<<10)
		s.credit[lane] -= size
		s.client.send('D', lane, s.ID, data[:size])
		data = data[size:]
	}
}

// End sends END.
func (s *Stream) End(lane byte) {
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	if !s.ours {
		s.client.send('E', lane, s.ID, nil)
	}
}

// Read waits for that many bytes on a lane, or its end, and returns them.
func (s *Stream) Read(lane byte, size int) string {
	s.client.t.Helper()
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.client.wait("data", func() bool { return len(s.data[lane]) >= size || s.ended[lane] || s.closed })
	size = min(size, len(s.data[lane]))
	taken := string(s.data[lane][:size])
	s.data[lane] = s.data[lane][size:]
	return taken
}

// ReadAll waits for a lane's END, and returns all that came; ended reports that it was END and not CLOSE.
func (s *Stream) ReadAll(lane byte) (data string, ended bool) {
	s.client.t.Helper()
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.client.wait("the end of a lane", func() bool { return s.ended[lane] || s.closed })
	data = string(s.data[lane])
	s.data[lane] = nil
	return data, s.ended[lane]
}

// Close sends CLOSE.
func (s *Stream) Close() {
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.close()
}

func (s *Stream) close() {
	if !s.ours {
		s.ours = true
		s.client.send('X', 0, s.ID, nil)
	}
}

// Failure waits for the agent's CLOSE, and returns its failure: nil for a plain one.
func (s *Stream) Failure() map[string]any {
	s.client.t.Helper()
	s.client.mutex.Lock()
	defer s.client.mutex.Unlock()
	s.client.wait("the end of the stream", func() bool { return s.closed })
	return s.failure
}
