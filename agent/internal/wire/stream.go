package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
)

const crumb = 1 << 10 // smaller pieces are joined while they wait to be read

var errClosed = errors.New("the stream is closed")

// Stream is a request of the client, or a connection that the agent announces. At most one goroutine reads each lane, and
// one writes it.
type Stream struct {
	session *Session
	id      uint32
	ctx     context.Context
	cancel  context.CancelFunc

	// guarded by the session's mu
	in       [lanes]*inLane
	out      [lanes]*outLane
	messages []Message
	arrived  chan struct{}
	theirs   bool // the client's CLOSE has come
	ours     bool // our CLOSE was sent, or waits for room
}

type inLane struct {
	pieces   [][]byte
	at       int // what is read of the first
	credit   int // what the client may still send
	window   int
	consumed int // what was read since the last grant
	ended    bool
	arrived  chan struct{}
}

type outLane struct {
	credit  int
	unacked int
	ended   bool
	wake    chan struct{}
}

func (s *Session) newStream(id uint32) *Stream {
	stream := &Stream{session: s, id: id, arrived: make(chan struct{}, 1)}
	stream.ctx, stream.cancel = context.WithCancel(s.ctx)
	s.streams[id] = stream
	return stream
}

// Open opens a stream from the agent. Whoever opens it closes it.
func (s *Session) Open(head any, fields ...[]byte) (*Stream, error) {
	payload, err := encodeMessage(head, fields)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return nil, ErrOver
	}
	s.lastOurs += 2
	stream := s.newStream(s.lastOurs)
	e := s.enqueue(&entry{stream: stream, frame: frame{kind: kindOpen, stream: stream.id, payload: payload}})
	s.mu.Unlock()
	return stream, s.admitted(e)
}

// admitted waits until a frame is admitted.
func (s *Session) admitted(e *entry) error {
	select {
	case <-e.admitted:
		return nil
	case <-s.ctx.Done():
		return ErrOver
	}
}

// ID is the number of the stream.
func (st *Stream) ID() uint32 { return st.id }

// Cancelled is closed when the client has sent CLOSE, when the session is over, and by our own Close.
func (st *Stream) Cancelled() <-chan struct{} { return st.ctx.Done() }

// Send sends a message. It waits for room in the connection's window.
func (st *Stream) Send(head any, fields ...[]byte) error {
	payload, err := encodeMessage(head, fields)
	if err != nil {
		return err
	}
	s := st.session
	s.mu.Lock()
	if st.ours {
		s.mu.Unlock()
		return errClosed
	}
	e := s.enqueue(&entry{stream: st, frame: frame{kind: kindMessage, stream: st.id, payload: payload}})
	s.mu.Unlock()
	return s.admitted(e)
}

// Receive waits for the client's next message; io.EOF means its CLOSE, or the end of the session.
func (st *Stream) Receive(ctx context.Context) (Message, error) {
	s := st.session
	for {
		s.mu.Lock()
		if len(st.messages) > 0 {
			message := st.messages[0]
			st.messages = st.messages[1:]
			s.mu.Unlock()
			return message, nil
		}
		ended := st.theirs || st.ours || s.over
		s.mu.Unlock()
		if ended {
			return Message{}, io.EOF
		}
		select {
		case <-st.arrived:
		case <-st.ctx.Done():
		case <-ctx.Done():
			if st.ctx.Err() == nil {
				return Message{}, ctx.Err()
			}
		}
	}
}

// Close sends CLOSE, with a failure if there is one. Handlers need not call it.
func (st *Stream) Close(failure error) error {
	s := st.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.ours {
		return nil
	}
	st.ours = true
	if st.theirs {
		delete(s.streams, st.id)
		if errors.Is(failure, context.Canceled) {
			failure = nil
		}
	}
	s.enqueue(&entry{stream: st, frame: frame{kind: kindClose, stream: st.id, payload: closing(failure)}})
	st.cancel()
	return nil
}

// take handles a frame from the client.
func (st *Stream) take(f frame) error {
	if st.theirs {
		return nil // for a stream that the client has closed
	}
	switch f.kind {
	case kindMessage:
		message, err := decodeMessage(f.payload)
		if err != nil {
			return err
		}
		if !st.ours {
			st.messages = append(st.messages, message)
			poke(st.arrived)
		}
	case kindData:
		lane := st.inLane(f.lane)
		if lane.ended || len(f.payload) > lane.credit {
			return breach("%d bytes on lane %d of stream %d with a credit of %d", len(f.payload), f.lane, st.id, lane.credit)
		}
		lane.credit -= len(f.payload)
		if !st.ours {
			lane.add(f.payload)
		}
	case kindCredit:
		lane := st.outLane(f.lane)
		lane.credit += int(binary.BigEndian.Uint32(f.payload) & 0x7fffffff)
		poke(lane.wake)
	case kindEnd:
		lane := st.inLane(f.lane)
		lane.ended = true
		poke(lane.arrived)
	case kindClose:
		st.theirs = true
		st.cancel()
		if st.ours {
			delete(st.session.streams, st.id)
		}
	}
	return nil
}

func (st *Stream) inLane(number byte) *inLane {
	if st.in[number] == nil {
		st.in[number] = &inLane{credit: laneCredit, window: laneCredit, arrived: make(chan struct{}, 1)}
	}
	return st.in[number]
}

func (st *Stream) outLane(number byte) *outLane {
	if st.out[number] == nil {
		st.out[number] = &outLane{credit: laneCredit, wake: make(chan struct{}, 1)}
	}
	return st.out[number]
}

func (l *inLane) add(piece []byte) {
	if last := len(l.pieces) - 1; last >= 0 && len(piece) < crumb && len(l.pieces[last]) < 4*crumb {
		l.pieces[last] = append(l.pieces[last], piece...)
	} else if len(piece) > 0 {
		l.pieces = append(l.pieces, piece)
	}
	poke(l.arrived)
}

type laneReader struct {
	stream *Stream
	lane   byte
}

// Reader reads what the client sends on a lane, and grants credit as it is read. It returns io.EOF after END, and
// io.ErrUnexpectedEOF if CLOSE or the end of the session came first.
func (st *Stream) Reader(lane byte) io.Reader { return &laneReader{st, lane} }

func (r *laneReader) Read(p []byte) (int, error) {
	st, s := r.stream, r.stream.session
	for len(p) > 0 {
		s.mu.Lock()
		lane := st.inLane(r.lane)
		if len(lane.pieces) > 0 {
			n := copy(p, lane.pieces[0][lane.at:])
			if lane.at += n; lane.at == len(lane.pieces[0]) {
				freeFrame(lane.pieces[0])
				lane.pieces[0] = nil
				lane.pieces, lane.at = lane.pieces[1:], 0
			}
			lane.consumed += n
			if lane.consumed >= lane.window/4 {
				st.credit(r.lane, lane.consumed)
				lane.consumed = 0
			}
			s.mu.Unlock()
			return n, nil
		}
		ended, gone := lane.ended, st.theirs || st.ours || s.over
		s.mu.Unlock()
		if ended {
			return 0, io.EOF
		}
		if gone {
			return 0, io.ErrUnexpectedEOF
		}
		select {
		case <-lane.arrived:
		case <-st.ctx.Done():
		}
	}
	return 0, nil
}

// Grant enlarges a lane's window by that many bytes.
func (st *Stream) Grant(lane byte, n int) {
	st.session.mu.Lock()
	defer st.session.mu.Unlock()
	st.inLane(lane).window += n
	st.credit(lane, n)
}

func (st *Stream) credit(number byte, n int) {
	lane := st.inLane(number)
	if st.theirs || st.ours || lane.ended {
		return
	}
	lane.credit += n
	payload := binary.BigEndian.AppendUint32(nil, uint32(n))
	st.session.enqueue(&entry{stream: st, frame: frame{kind: kindCredit, lane: number, stream: st.id, payload: payload}})
}

type laneWriter struct {
	stream *Stream
	lane   byte
	bulk   bool
}

// Writer sends on a lane, and waits for the client's credit and for room. Close sends END.
func (st *Stream) Writer(lane byte, bulk bool) io.WriteCloser { return &laneWriter{st, lane, bulk} }

func (w *laneWriter) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := w.writeFrame(p[written:])
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (w *laneWriter) writeFrame(p []byte) (int, error) {
	st, s := w.stream, w.stream.session
	s.mu.Lock()
	out := st.outLane(w.lane)
	for out.credit == 0 && st.ctx.Err() == nil {
		s.mu.Unlock()
		select {
		case <-out.wake:
		case <-st.ctx.Done():
		}
		s.mu.Lock()
	}
	if out.ended || st.ctx.Err() != nil {
		s.mu.Unlock()
		return 0, errClosed
	}
	n := min(len(p), out.credit, maxData)
	out.credit -= n
	e := s.enqueue(&entry{
		stream: st, out: out, bulk: w.bulk || out.unacked > laneWaiting,
		frame: frame{kind: kindData, lane: w.lane, stream: st.id, payload: p[:n]},
	})
	s.mu.Unlock()
	select {
	case <-e.admitted:
	case <-st.ctx.Done():
		s.mu.Lock()
		e.dropped = true // p is the caller's again
		s.mu.Unlock()
		select {
		case <-e.admitted:
		default:
			return 0, errClosed
		}
	}
	return n, nil
}

func (w *laneWriter) Close() error {
	st, s := w.stream, w.stream.session
	s.mu.Lock()
	defer s.mu.Unlock()
	out := st.outLane(w.lane)
	if st.ours || out.ended {
		return nil
	}
	out.ended = true
	s.enqueue(&entry{stream: st, frame: frame{kind: kindEnd, lane: w.lane, stream: st.id}})
	return nil
}
