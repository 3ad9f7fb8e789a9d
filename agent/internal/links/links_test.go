package links

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"remote-runner/agent/internal/wiretest"
)

func reach(t *testing.T, meeting map[string]any, token any) *wiretest.Stream {
	t.Helper()
	return wiretest.New(t, Reach).Open(map[string]any{
		"verb": "reach", "host": "127.0.0.1", "port": meeting["port"], "token": token, "seconds": 0.1,
	})
}

func TestTheWayIsMeasured(t *testing.T) {
	meet := wiretest.New(t, Meet).Open(map[string]any{"verb": "meet"})
	meeting := meet.Receive()
	said := reach(t, meeting, meeting["token"]).Receive()
	if len(said["round_trips_s"].([]any)) != trips || said["bytes"].(float64) < chunkSize || said["seconds"].(float64) < 0.1 {
		t.Errorf("%v", said)
	}
	// Who does not know the token gets nothing.
	if failure := reach(t, meeting, "00112233445566778899aabbccddeeff").Failure(); failure["error"] != "refused" {
		t.Errorf("%v", failure)
	}
	meet.Close()
	meet.Failure()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(meeting["port"].(float64))))
	if connection, err := net.Dial("tcp", address); err == nil {
		connection.Close()
		t.Error("somebody still listens")
	}
	if failure := reach(t, meeting, meeting["token"]).Failure(); failure["error"] != "refused" {
		t.Errorf("%v", failure)
	}
	if failure := reach(t, meeting, "xyz").Failure(); failure["error"] != "breach" {
		t.Errorf("%v", failure)
	}
}

func TestWhoHasNoTokenIsSentAwayInTime(t *testing.T) {
	meet := wiretest.New(t, Meet).Open(map[string]any{"verb": "meet"})
	meeting := meet.Receive()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(meeting["port"].(float64))))
	var connections []net.Conn
	for _, words := range []string{"", "half a token", "more than a token, and no right one"} {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			_, err = io.WriteString(connection, words)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		_ = connection.SetDeadline(time.Now().Add(2 * patience))
		connections = append(connections, connection)
	}
	for _, connection := range connections {
		if said, err := io.ReadAll(connection); len(said) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q, %v", said, err)
		}
	}
	meet.Close()
	meet.Failure()
}

func TestPlacesAreFew(t *testing.T) {
	meet := wiretest.New(t, Meet).Open(map[string]any{"verb": "meet"})
	meeting := meet.Receive()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(meeting["port"].(float64))))
	var last net.Conn
	for i := 0; i <= places; i++ {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		last = connection
	}
	_ = last.SetDeadline(time.Now().Add(patience / 2)) // before it would be closed for what it lacks
	if _, err := last.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v", err)
	}
	meet.Close()
	meet.Failure()
}
