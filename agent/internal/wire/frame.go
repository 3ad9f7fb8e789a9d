// Package wire is the agent's end of the protocol in docs/protocol.md: frames, the session that
// survives its transports, and the streams that verbs are served on.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// The kinds of frames.
const (
	kindHello   = 'H'
	kindAck     = 'A'
	kindPing    = 'P'
	kindPong    = 'Q'
	kindOpen    = 'O'
	kindMessage = 'M'
	kindData    = 'D'
	kindCredit  = 'C'
	kindEnd     = 'E'
	kindClose   = 'X'
	kindBye     = 'B'
)

const (
	// Protocol is the protocol's version.
	Protocol = 1

	headerSize  = 18
	maxPayload  = 1 << 20
	maxData     = 64 << 10
	lanes       = 4
	laneCredit  = 256 << 10
	keptWindow  = 16 << 20
	ackBytes    = 64 << 10
	mostUnacked = 512 << 10
	largestBulk = 4 << 20
)

// errBreach is wrapped by every error for a violation of the protocol.
var errBreach = errors.New("breach of the protocol")

func breach(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errBreach, fmt.Sprintf(format, args...))
}

type frame struct {
	kind    byte
	lane    byte
	stream  uint32
	number  uint64
	payload []byte
}

// numbered reports whether frames of this kind are numbered, kept and acknowledged.
func numbered(kind byte) bool {
	switch kind {
	case kindOpen, kindMessage, kindData, kindCredit, kindEnd, kindClose, kindBye:
		return true
	}
	return false
}

func appendFrame(to []byte, f frame) []byte {
	to = binary.BigEndian.AppendUint32(to, uint32(len(f.payload)))
	to = append(to, f.kind, f.lane)
	to = binary.BigEndian.AppendUint32(to, f.stream)
	to = binary.BigEndian.AppendUint64(to, f.number)
	return append(to, f.payload...)
}

// readFrame reads one frame and checks what can be checked without the session. It returns io.EOF only between frames.
func readFrame(from io.Reader, header []byte) (frame, error) {
	if _, err := io.ReadFull(from, header[:headerSize]); err != nil {
		return frame{}, err
	}
	f := frame{
		kind:   header[4],
		lane:   header[5],
		stream: binary.BigEndian.Uint32(header[6:]),
		number: binary.BigEndian.Uint64(header[10:]),
	}
	size := binary.BigEndian.Uint32(header)
	if err := f.check(size); err != nil {
		return frame{}, err
	}
	if size > 0 {
		f.payload = newFrame(int(size))[:size]
		if _, err := io.ReadFull(from, f.payload); err != nil {
			return frame{}, fmt.Errorf("a frame ended early: %w", noEOF(err))
		}
	}
	return f, nil
}

// check rejects a bad header before its payload is allocated.
func (f *frame) check(size uint32) error {
	fits := size <= maxPayload
	switch f.kind {
	case kindHello, kindOpen, kindMessage, kindClose:
	case kindAck, kindPing, kindPong:
		fits = size == 8
	case kindCredit:
		fits = size == 4
	case kindEnd, kindBye:
		fits = size == 0
	case kindData:
		fits = size <= maxData
	default:
		return breach("a frame of the unknown kind %#x", f.kind)
	}
	if !fits {
		return breach("%d bytes in a frame of kind %c", size, f.kind)
	}
	if f.lane >= lanes {
		return breach("lane %d", f.lane)
	}
	if numbered(f.kind) != (f.number > 0) {
		return breach("number %d on a frame of kind %c", f.number, f.kind)
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Message is the payload of OPEN, MESSAGE and CLOSE: a JSON object, and fields of bytes, without the NUL before each.
type Message struct {
	Head   json.RawMessage
	Fields [][]byte
}

// Decode reads the head into a value.
func (m Message) Decode(into any) error {
	if err := json.Unmarshal(m.Head, into); err != nil {
		return Fail("breach", "the head of a message cannot be read: %v", err)
	}
	return nil
}

func encodeMessage(head any, fields [][]byte) ([]byte, error) {
	payload, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("a message cannot be written: %w", err)
	}
	for _, field := range fields {
		if bytes.IndexByte(field, 0) >= 0 {
			return nil, errors.New("a field of a message holds a zero byte")
		}
		payload = append(append(payload, 0), field...)
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("a message of %d bytes is too long", len(payload))
	}
	return payload, nil
}

func decodeMessage(payload []byte) (Message, error) {
	parts := bytes.Split(payload, []byte{0})
	head := bytes.TrimSpace(parts[0])
	if len(head) == 0 || head[0] != '{' || !json.Valid(head) {
		return Message{}, breach("a message without a JSON object")
	}
	return Message{Head: json.RawMessage(head), Fields: parts[1:]}, nil
}

// Failure is an error to report to the client in a CLOSE.
type Failure struct {
	Kind string
	Text string
	More map[string]any
}

// Fail makes a Failure of one of the kinds in docs/protocol.md.
func Fail(kind, format string, args ...any) *Failure {
	return &Failure{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// NoRoom is the failure of a file system that cannot be written at that path.
func NoRoom(err error, path string) *Failure {
	kind := "room"
	if errors.Is(err, syscall.EROFS) {
		kind = "readonly"
	}
	return Fail(kind, "%v", err).With("path", path)
}

// With adds another key to the failure.
func (f *Failure) With(key string, value any) *Failure {
	if f.More == nil {
		f.More = map[string]any{}
	}
	f.More[key] = value
	return f
}

func (f *Failure) Error() string { return f.Text }

// closing returns the payload of a failure's CLOSE; empty for no failure.
func closing(failure error) []byte {
	if failure == nil {
		return nil
	}
	var told *Failure
	if !errors.As(failure, &told) {
		told = Fail("failed", "%v", failure)
	}
	head := map[string]any{}
	for key, value := range told.More {
		head[key] = value
	}
	head["error"], head["text"] = told.Kind, told.Text
	payload, err := encodeMessage(head, nil)
	if err != nil { // too long, or not representable in JSON
		payload, _ = encodeMessage(map[string]any{"error": told.Kind, "text": fmt.Sprintf("%.4000s", told.Text)}, nil)
	}
	return payload
}
