package frame

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	long := bytes.Repeat([]byte("x"), MaxBytes+1)
	if _, err := w.Stream(Stdout).Write(long); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteJSON(Exit, Status{Step: 2, Code: 137, Text: "signal: killed"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		t Type
		n int
	}{{Stdout, MaxBytes}, {Stdout, 1}, {Exit, 45}} {
		typ, payload, err := Read(&b)
		if err != nil || typ != want.t || len(payload) != want.n {
			t.Fatalf("read %q, %d bytes, %v; want %q, %d", typ, len(payload), err, want.t, want.n)
		}
	}
	if _, _, err := Read(&b); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
}

func TestBadFrames(t *testing.T) {
	if _, _, err := Read(bytes.NewReader([]byte{'o', 255, 255, 255, 255})); !errors.Is(err, errTooLong) {
		t.Errorf("huge length: %v", err)
	}
	_, _, err := Read(bytes.NewReader([]byte{'o', 4, 0, 0, 0, 'a'}))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut frame: %v", err)
	}
	if err := NewWriter(io.Discard).Write(Stdout, make([]byte, MaxBytes+1)); err == nil {
		t.Error("too long a frame was written")
	}
}
