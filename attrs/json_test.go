package attrs

import (
	"encoding/json"
	"testing"
	"time"
)

func TestSetJSON(t *testing.T) {
	s, err := ParseSet("hint=bypass,prio=rt/2,timing,0xf001=c0ffee,required:hint")
	if err != nil {
		t.Fatal(err)
	}
	rule, _ := ParseSet("hint=pin,tenant=7")
	rule.Mark(SourceRule)
	s.Merge(&rule)
	s.SetMode(9)
	got, err := json.Marshal(&s)
	const want = `{"0xf001":{"value":"c0ffee","source":"explicit"},` +
		`"hint":{"value":"bypass","source":"explicit","over":["rule"],"required":true},` +
		`"mode":{"invalid":"value out of range"},` +
		`"prio":{"value":"rt/2","source":"explicit"},` +
		`"tenant":{"value":"7","source":"rule"},"timing":{"source":"explicit"}}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestResultsJSON(t *testing.T) {
	s, err := ParseSet("hint=bypass,timing,checksum=crc32c,0xf001=00")
	if err != nil {
		t.Fatal(err)
	}
	var r Results
	r.Begin(&s, Request{Direction: Read, Bytes: 8192}, 7)
	r.Ignore(IDHint, ReasonMode)
	r.SetTiming(Timing{1, 2, 3, 4 * time.Microsecond})
	r.SetChecksums(CRC32C, []byte{1, 0, 0, 0, 2, 0, 0, 0xff})
	r.Origin = OriginMixed
	got, err := json.Marshal(&r)
	const want = `{"origin":"mixed","blocks":2,"devices":[7],"attributes":{` +
		`"0xf001":{"status":"unsupported","reason":"unknown id"},` +
		`"checksum":{"status":"handled","source":"explicit"},` +
		`"hint":{"status":"ignored","reason":"no effect in this mode","source":"explicit"},` +
		`"timing":{"status":"handled","source":"explicit"}},` +
		`"timing":{"queued_ns":1,"ssd_ns":2,"backing_ns":3,"total_ns":4000},` +
		`"checksums":{"algorithm":"crc32c","values":["00000001","ff000002"]}}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	r.SetMismatch(CRC32C, 0)
	got, _ = json.Marshal(&r)
	var back struct {
		Checksums struct {
			Block *int `json:"mismatch_block"`
		}
	}
	if err := json.Unmarshal(got, &back); err != nil || back.Checksums.Block == nil {
		t.Errorf("no first bad block in %s", got)
	}
	got, _ = json.Marshal(&Results{})
	if string(got) != `{"origin":"unknown","blocks":0,"devices":[],"attributes":{}}` {
		t.Errorf("silence: %s", got)
	}
}
