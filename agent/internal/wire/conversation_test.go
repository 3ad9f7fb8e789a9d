package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"testing"
)

// A recordedFrame is a frame of tests/protocol/conversation.json, which the client's side is held against as well.
type recordedFrame struct {
	Kind    string
	Lane    byte
	Stream  uint32
	Number  uint64
	Head    json.RawMessage
	Fields  []string
	Payload string
	Bytes   string
}

func TestTheRecordedConversationReadsAndWritesAsItWas(t *testing.T) {
	text, err := os.ReadFile("../../../tests/protocol/conversation.json")
	if err != nil {
		t.Skip(err)
	}
	var sides map[string][]recordedFrame
	if err := json.Unmarshal(text, &sides); err != nil {
		t.Fatal(err)
	}
	for side, frames := range sides {
		var all []byte
		for _, recorded := range frames {
			raw, _ := hex.DecodeString(recorded.Bytes)
			all = append(all, raw...)
		}
		from, header := bytes.NewReader(all), make([]byte, headerSize)
		for i, recorded := range frames {
			f, err := readFrame(from, header)
			if err != nil {
				t.Fatalf("%s %d: %v", side, i, err)
			}
			if string(f.kind) != recorded.Kind || f.lane != recorded.Lane || f.stream != recorded.Stream ||
				f.number != recorded.Number || hex.EncodeToString(f.payload) != recorded.Payload {
				t.Errorf("%s %d: read %+v, recorded %+v", side, i, f, recorded)
			}
			if written := hex.EncodeToString(appendFrame(nil, f)); written != recorded.Bytes {
				t.Errorf("%s %d: written as %s, recorded as %s", side, i, written, recorded.Bytes)
			}
			if recorded.Head == nil {
				continue
			}
			message, err := decodeMessage(f.payload)
			if err != nil {
				t.Fatalf("%s %d: %v", side, i, err)
			}
			var head, want any
			if json.Unmarshal(message.Head, &head) != nil || json.Unmarshal(recorded.Head, &want) != nil || !reflect.DeepEqual(head, want) {
				t.Errorf("%s %d: %s means %s", side, i, message.Head, recorded.Head)
			}
			for j, field := range message.Fields {
				if hex.EncodeToString(field) != recorded.Fields[j] {
					t.Errorf("%s %d: field %d is %q", side, i, j, field)
				}
			}
		}
		if _, err := readFrame(from, header); err != io.EOF {
			t.Errorf("%s: behind the last frame: %v", side, err)
		}
	}
}
