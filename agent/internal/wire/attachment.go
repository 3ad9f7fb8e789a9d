package wire

import (
	"bufio"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const batchSize = 256 << 10

// Transport is a pair of streams that reaches the client.
type Transport struct {
	In       io.ReadCloser
	Out      io.WriteCloser
	Epoch    uint64
	Greeting func(received uint64) []byte // what is written before the first frame
	Stands   func() bool                  // whether the way to the client does, after In ended; nil: it does not
	Release  func()                       // called once, when the streams are closed; may be nil
}

// Attachment is a session's use of one transport.
type Attachment struct {
	session   *Session
	transport Transport
	kick      chan struct{} // signals that there may be something to write
	stopped   chan struct{}
	stopOnce  sync.Once
	start     time.Time
	heard     atomic.Int64 // when the last bytes came, as nanoseconds since start

	// guarded by the session's mu
	attached bool   // HELLO has come
	next     uint64 // the number of the next frame to write
	alone    uint64 // frames above this one are written for the first time
	written  uint64 // the number of the last frame that is completely written
	control  []byte // unnumbered frames to write
	ended    bool   // stdin has
	silence  *time.Timer
}

// Attach continues the session on a transport. The previous transport is closed, and what it still delivers is ignored.
// On error, the transport stays the caller's.
func (s *Session) Attach(t Transport) (*Attachment, error) {
	a := &Attachment{
		session: s, transport: t, kick: make(chan struct{}, 1), stopped: make(chan struct{}), start: time.Now(),
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return nil, ErrOver
	}
	old := s.current
	if t.Epoch <= s.epoch || (old != nil && t.Epoch < old.transport.Epoch) {
		s.mu.Unlock()
		return nil, errReplaced
	}
	s.current = a
	s.armLost()
	s.unacked, s.ackDue, s.ackArmed = 0, false, false // the greeting says the same
	greeting := t.Greeting(s.received)
	s.mu.Unlock()
	if old != nil {
		old.stop()
	}
	go a.write(greeting)
	go a.read()
	return a, nil
}

// Break marks the transport as broken, whatever the state of its streams.
func (a *Attachment) Break() { a.session.detach(a) }

func (a *Attachment) stop() {
	a.stopOnce.Do(func() {
		a.session.mu.Lock()
		if a.silence != nil {
			a.silence.Stop()
		}
		a.session.mu.Unlock()
		close(a.stopped)
		a.transport.In.Close()
		a.transport.Out.Close()
		if a.transport.Release != nil {
			a.transport.Release()
		}
	})
}

// Read notes every sign of life.
func (a *Attachment) Read(p []byte) (int, error) {
	n, err := a.transport.In.Read(p)
	if n > 0 {
		a.heard.Store(int64(time.Since(a.start)))
	}
	return n, err
}

func (a *Attachment) read() {
	from := bufio.NewReaderSize(a, 64<<10)
	header := make([]byte, headerSize)
	for {
		f, err := readFrame(from, header)
		if err == nil {
			err = a.session.take(a, f)
		}
		if err != nil {
			a.session.ended(a, err)
			return
		}
	}
}

func (a *Attachment) write(greeting []byte) {
	to := bufio.NewWriterSize(a.transport.Out, 32<<10)
	var batch [][]byte
	_, err := to.Write(greeting)
	for err == nil {
		batch = a.batch(batch[:0])
		if len(batch) == 0 {
			if err = to.Flush(); err != nil {
				break
			}
			select {
			case <-a.kick:
			case <-a.stopped:
				return
			}
		}
		for i, raw := range batch {
			if err == nil {
				_, err = to.Write(raw)
			}
			batch[i] = nil
		}
	}
	// If the client was killed, ssh cannot pass anything on and closes stdout; stdin then ends as well, and what that means
	// is found there.
	time.AfterFunc(settleTime, func() {
		a.session.mu.Lock()
		ended := a.ended
		a.session.mu.Unlock()
		if !ended {
			a.session.detach(a)
		}
	})
}

// batch returns what to write next: unnumbered frames first.
func (a *Attachment) batch(batch [][]byte) [][]byte {
	s := a.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != a {
		return batch
	}
	if a.attached {
		a.written = a.next - 1 // all that was taken before
	}
	if len(a.control) > 0 {
		batch = append(batch, a.control)
		a.control = nil
	}
	if !a.attached {
		return batch
	}
	if s.ackDue {
		s.unacked, s.ackDue, s.ackArmed = 0, false, false
		payload := binary.BigEndian.AppendUint64(nil, s.received)
		batch = append(batch, appendFrame(nil, frame{kind: kindAck, payload: payload}))
	}
	first := s.sent - uint64(len(s.kept)) + 1
	a.next = max(a.next, first)
	for size := 0; a.next <= s.sent && size < batchSize; a.next++ {
		raw := s.kept[a.next-first].raw
		batch = append(batch, raw)
		size += len(raw)
	}
	return batch
}

// watch gives up the transport when it has been silent for too long.
func (a *Attachment) watch(alive time.Duration) {
	var asked int64 = -1
	a.silence = time.AfterFunc(alive, func() {
		heard := a.heard.Load()
		quiet := time.Since(a.start) - time.Duration(heard)
		wait := alive - quiet
		if wait <= 0 {
			if asked == heard {
				a.session.detach(a)
				return
			}
			asked, wait = heard, againTime
		}
		a.session.mu.Lock()
		defer a.session.mu.Unlock()
		if a.session.current == a {
			a.silence.Reset(wait)
		}
	})
}
