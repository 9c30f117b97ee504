package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ubcache/attrs"
	"ubcache/attrs/client"
	"ubcache/attrs/shm"
	"ubcache/cache"
	"ubcache/internal/control"
)

// newTraced is a shell with a cache, and a client of its device data.
func newTraced(t *testing.T) (*shell, *client.Device) {
	t.Helper()
	s := newShell(t)
	out, status := s.do("truncate -s 128M ssd && truncate -s 64M disk && ubcache format ssd --name main &&" +
		"ubcache start --no-ublk && ubcache attach disk --name data --mode writeback")
	if status != 0 {
		t.Fatal(out)
	}
	d, err := client.Open("", client.Options{Socket: s.run + "/main" + shm.SocketSuffix, Device: "data"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return s, d
}

// play reads or writes a block with attributes; whether that succeeds is not its business.
func play(t *testing.T, d *client.Device, write bool, off int64, text string) {
	t.Helper()
	set, err := attrs.ParseSet(text)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, cache.BlockSize)
	if write {
		_, _, _ = d.WriteAt(buf, off, &set)
	} else {
		_, _, _ = d.ReadAt(buf, off, &set)
	}
}

// rowsOf are the lines of a text as their cells.
func rowsOf(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// TestAttributeStats: what stats and status say of requests with attributes.
func TestAttributeStats(t *testing.T) {
	s, d := newTraced(t)
	play(t, d, true, 0, "hint=pin,tenant=7,prio=rt/2")
	play(t, d, false, 0, "hint=once,tenant=cgroup:12,prio=idle/0")
	play(t, d, false, 4096, "hint=once,tenant=12,prio=be/4")
	play(t, d, true, 0, "mode=writearound,checksum=xxh64:0000000000000001,tenant=12")
	text, status := s.do("ubcache stats")
	if status != 0 {
		t.Fatal(text)
	}
	_, text, _ = strings.Cut(text, "evicted")
	var got []string
	for _, row := range rowsOf(text)[1:] {
		if n := len(row); n >= 7 && (strings.HasSuffix(row[n-1], "s") || row[n-1] == "0") && row[0] != "attribute" {
			row = row[:n-2] // times differ
		}
		got = append(got, strings.Join(row, " "))
	}
	want := `
attribute requests handled ignored unsupported invalid said by
hint 3 3 0 0 0 explicit 3
mode 1 0 1 0 0 explicit 1
prio 3 3 0 0 0 explicit 3
checksum 1 1 0 0 0 explicit 1
tenant 4 4 0 0 0 explicit 4

hint requests errors bytes hit ratio p50 p99
once 2 0 8.0 KiB 50.0%
pin 1 0 4.0 KiB -

priority requests errors bytes hit ratio p50 p99
rt/2 1 0 4.0 KiB -
be/4 1 0 4.0 KiB 0.0%
idle/0 1 0 4.0 KiB 100.0%

tenant requests errors bytes hit ratio p50 p99
7 1 0 4.0 KiB -
12 2 1 4.0 KiB 0.0%
cgroup:12 1 0 4.0 KiB 100.0%`
	if g := "\n" + strings.TrimSpace(strings.Join(got, "\n")); g != want {
		t.Errorf("stats:%s\nwant%s\nfrom%s", g, want, text)
	}
	text, _ = s.do("ubcache stats --json")
	var list []control.Stats
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	once := list[0].Cache.Attributes.ByHint["once"]
	if once.HitRatio != 0.5 || once.P50Ns <= 0 || once.P99Ns < once.P50Ns || once.Bytes != 8192 {
		t.Errorf("in JSON: %+v", once)
	}
	text, _ = s.do("ubcache status")
	rows := rowsOf(text)
	last, head := strings.Join(rows[len(rows)-1], " "), strings.Join(rows[len(rows)-2], " ")
	if !strings.HasSuffix(head, " DIRTY PINNED USED BY") || !strings.HasSuffix(last, " 4.0 KiB 4.0 KiB -") {
		t.Errorf("status does not say what is pinned:\n%s", text)
	}
}

// TestTrace: traced requests in the list, by id, as JSON, and as they come.
func TestTrace(t *testing.T) {
	s, d := newTraced(t)
	play(t, d, true, 8192, "trace=0xfeed")
	play(t, d, false, 8192, "trace=42")
	play(t, d, true, 0, "trace=42,checksum=xxh64:0000000000000001")
	list := func(line string) (all []string) {
		t.Helper()
		text, status := s.do(line)
		if status != 0 {
			t.Fatalf("%s: %s", line, text)
		}
		for _, row := range rowsOf(text) {
			if _, err := time.Parse(time.RFC3339, row[0]); err != nil && row[0] != "TIME" {
				t.Errorf("%s: no time in %v", line, row)
			}
			if row[0] != "TIME" {
				row = append(row[:7], row[11:]...)
			}
			all = append(all, strings.Join(row[1:], " "))
		}
		return all
	}
	same := func(what string, got []string, want ...string) {
		t.Helper()
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
			t.Errorf("%s:\n%s\nwant\n%s", what, g, w)
		}
	}
	const head = "ID DEVICE OP OFFSET LENGTH ORIGIN QUEUED SSD BACKING TOTAL ERROR"
	feed, read := "0xfeed data write 8K 4K ssd -", "0x2a data read 8K 4K ssd -"
	bad := "0x2a data write 0 4K none " + cache.ErrMismatch.Error()
	same("all", list("ubcache trace"), head, feed, read, bad)
	same("one", list("ubcache trace main --id 42"), head, read, bad)
	same("one, in hexadecimal", list("ubcache trace --id 0xFEED"), head, feed)
	if text, _ := s.do("ubcache trace --id 0"); text != "no traced requests\n" {
		t.Errorf("none: %s", text)
	}
	text, _ := s.do("ubcache trace --json")
	var js []map[string]any
	if err := json.Unmarshal([]byte(text), &js); err != nil || len(js) != 3 || js[0]["id"] != "0xfeed" ||
		js[0]["backing"] != "data" || js[0]["offset"] != 8192.0 || js[0]["total_ns"] == 0.0 {
		t.Errorf("JSON (%v): %s", err, text)
	}
	follow(t, s, d)
}

// follow watches requests as they come: each once, until the command is interrupted.
func follow(t *testing.T, s *shell, d *client.Device) {
	t.Helper()
	cmd := exec.Command(s.self, "--config", s.dir+"/ubcache.toml", "trace", "--follow", "--json", "--id", "7")
	cmd.Env = append(cmd.Environ(), envMain+"=1", control.EnvRuntimeDir+"="+s.run)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	play(t, d, true, 0, "trace=7")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	in := json.NewDecoder(out)
	next := func(want int64) {
		t.Helper()
		var got control.Trace
		if err := in.Decode(&got); err != nil || got.Off != want || got.ID != "0x7" {
			t.Fatalf("followed: %+v, %v; want one at %d", got, err, want)
		}
	}
	next(0)
	for i := int64(1); i < 4; i++ {
		play(t, d, true, i*cache.BlockSize, "trace=8")
		play(t, d, true, i*cache.BlockSize, "trace=7")
		next(i * cache.BlockSize)
		time.Sleep(followEvery) // so that it asks again, and sees the same
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(io.MultiReader(in.Buffered(), out)); err != nil ||
		strings.TrimSpace(string(rest)) != "" {
		t.Errorf("more than once: %s (%v)", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted, it ends with %v", err)
	}
}

func TestUnseen(t *testing.T) {
	at := time.Now().Round(0)
	one := control.Trace{ID: "0x1", Trace: cache.Trace{Done: at, Off: 4096}}
	two := one
	two.Off = 8192
	fresh, seen := unseen([]control.Trace{one, two}, nil)
	if len(fresh) != 2 {
		t.Errorf("at first: %v", fresh)
	}
	one.Done = at.In(time.FixedZone("elsewhere", 3600)) // the same moment
	later := two
	later.Done = at.Add(1)
	if fresh, seen = unseen([]control.Trace{one, two, later}, seen); len(fresh) != 1 ||
		!fresh[0].Done.Equal(later.Done) {
		t.Errorf("then: %v", fresh)
	}
	if fresh, _ = unseen([]control.Trace{later}, seen); fresh != nil {
		t.Errorf("again: %v", fresh)
	}
}

func TestBrief(t *testing.T) {
	for ns, want := range map[int64]string{
		0: "0s", 999: "999ns", 12345: "12.35µs", 999_999: "1ms", 1_234_567: "1.23ms",
		61_234_000_000: "1m1.23s",
	} {
		if got := brief(ns); got != want {
			t.Errorf("%d ns is %s, want %s", ns, got, want)
		}
	}
}
