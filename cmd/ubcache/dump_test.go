package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"ubcache/cache"
)

// wholeDump is all that dump writes with --json.
type wholeDump struct {
	cache.Dumped
	Blocks   []cache.DumpedBlock `json:"blocks,omitempty"`
	Problems []cache.Problem     `json:"problems,omitempty"`
}

// TestDumpJSON makes sure that what is written block by block is what would be written as a whole.
func TestDumpJSON(t *testing.T) {
	s := newShell(t)
	dump := func(flags string, blocks, problems bool) (d wholeDump) {
		t.Helper()
		out, status := s.do("ubcache dump main --json " + flags)
		if err := json.Unmarshal([]byte(out), &d); status != 0 || err != nil {
			t.Fatalf("dump %s: exit status %d, %v:\n%s", flags, status, err, out)
		}
		var whole bytes.Buffer
		if err := printJSON(&whole, &d); err != nil {
			t.Fatal(err)
		}
		if out != whole.String() {
			t.Errorf("dump %s: %s", flags, firstDifference(whole.String(), out))
		}
		if len(d.Blocks) > 0 != blocks || len(d.Problems) > 0 != problems {
			t.Errorf("dump %s: %d blocks, %d problems", flags, len(d.Blocks), len(d.Problems))
		}
		return d
	}
	s.do("truncate -s 128M ssd; truncate -s 64M disk; ubcache format ssd")
	dump("--blocks", false, false)
	out, status := s.do(`ubcache start --no-ublk; ubcache attach disk --mode writeback
		head -c 1M /dev/urandom >data; ubcache io write --device disk --offset 2M --length 1M --input data; ubcache stop`)
	if status != 0 {
		t.Fatal(out)
	}
	dump("", false, false)
	dump("--journal --summaries", false, false)
	d := dump("--blocks --journal", true, false)
	ssd, err := os.OpenFile(s.dir+"/ssd", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := d.SummaryOff[0] + int64(d.Blocks[0].Bucket)*(d.SummaryOff[1]-d.SummaryOff[0])/int64(d.Buckets)
	if _, err := ssd.WriteAt([]byte("damage"), at+100); err != nil {
		t.Fatal(err)
	}
	_ = ssd.Close()
	dump("--blocks", true, true)
	dump("", false, true)
}
