package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ubcache/internal/control"
	"ubcache/internal/missed"
)

// The files in testdata are transcripts: each line that begins with "$ " is a command, what
// follows is what it printed, and a failed command ends with its exit status in brackets. They run
// on image files, without ublk. go test -rewrite writes them anew.
var rewrite = flag.Bool("rewrite", false, "write what the commands print into the transcripts")

const envMain = "UBCACHE_TEST_MAIN"

// TestMain makes the test binary the ubcache command when a test runs it so.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == argIOPrio {
		printIOPrio()
	}
	if os.Getenv(envMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// shell runs the commands of a transcript in a folder of its own.
type shell struct {
	t    *testing.T
	dir  string // the image files
	run  string // the runtime folder, on tmpfs
	self string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	if !control.OnTmpfs("/dev/shm") {
		t.Fatal("/dev/shm is not on tmpfs")
	}
	run, err := os.MkdirTemp("/dev/shm", "ubcache-test-")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{t: t, dir: t.TempDir(), run: run, self: self}
	t.Cleanup(func() {
		_, _ = s.do("ubcache stop --force")
		if t.Failed() {
			logs, _ := filepath.Glob(run + "/*.log")
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", filepath.Base(l), text)
			}
		}
		_ = os.RemoveAll(run)
	})
	return s
}

// do runs a line through sh, with ubcache as a function.
func (s *shell) do(line string) (out string, status int) {
	s.t.Helper()
	script := `ubcache() { "$UBCACHE" --config "$DIR/ubcache.toml" "$@"; }` + "\ncd $DIR\n" + line
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), envMain+"=1", "UBCACHE="+s.self, "DIR="+s.dir,
		"RUN="+s.run, control.EnvRuntimeDir+"="+s.run, missed.EnvStateDir+"="+s.dir+"/state")
	b, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

var (
	uuidPattern = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	pidPattern  = regexp.MustCompile(`(process |pid"?:? )[0-9]+`)
	timePattern = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)`)
	agePattern  = regexp.MustCompile(`(process PID for )\S+`)
	voidPattern = regexp.MustCompile(`(?m)^\n`)
	gapPattern  = regexp.MustCompile(`(\S)   +(\S)`)
	numPattern  = regexp.MustCompile(`(answered by device |"devices":\[)[0-9]+`)
	secPattern  = regexp.MustCompile(`(, |"seconds": )[0-9.]+( s since its start|,)`)
)

// tidy replaces what differs from run to run. Empty lines are left out: in a transcript they stand
// between commands.
func (s *shell) tidy(text string) string {
	text = strings.ReplaceAll(text, s.dir, "$DIR")
	text = strings.ReplaceAll(text, s.run, "$RUN")
	text = gapPattern.ReplaceAllString(text, "$1  $2") // columns are as wide as the folder's name
	text = voidPattern.ReplaceAllString(text, "")
	seen := map[string]string{}
	text = uuidPattern.ReplaceAllStringFunc(text, func(u string) string {
		if seen[u] == "" {
			seen[u] = fmt.Sprintf("UUID%d", len(seen)+1)
		}
		return seen[u]
	})
	text = pidPattern.ReplaceAllString(text, "${1}PID")
	text = agePattern.ReplaceAllString(text, "${1}AGE")
	text = secPattern.ReplaceAllString(text, "${1}SECONDS${2}")
	text = numPattern.ReplaceAllString(text, "${1}N")
	return timePattern.ReplaceAllString(text, "TIME")
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newShell(t)
			var got bytes.Buffer
			gap := ""
			for line := range strings.Lines(string(want)) {
				line = strings.TrimSuffix(line, "\n")
				switch {
				case line == "":
					gap += "\n"
					continue
				case strings.HasPrefix(line, "#"):
					got.WriteString(gap + line + "\n")
				case strings.HasPrefix(line, "$ "):
					got.WriteString(gap)
					out, status := s.do(line[2:])
					// Blank lines before a command or a comment belong to the transcript.
					out = strings.TrimRight(s.tidy(out), "\n")
					fmt.Fprintf(&got, "%s\n%s", line, out)
					if out != "" {
						got.WriteByte('\n')
					}
					if status != 0 {
						fmt.Fprintf(&got, "[%d]\n", status)
					}
				}
				gap = "" // what came before other lines is part of the output
			}
			if *rewrite {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("the transcript has changed (go test -rewrite accepts it):\n%s",
					firstDifference(string(want), got.String()))
			}
		})
	}
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			other := "the end"
			if i < len(b) {
				other = b[i]
			}
			return fmt.Sprintf("line %d\n  was %s\n  is  %s", i+1, a[i], other)
		}
	}
	return "more lines: " + strings.Join(b[len(a):], "\n")
}

// TestJSON makes sure that what scripts read is JSON and has the fields they were promised.
func TestJSON(t *testing.T) {
	s := newShell(t)
	fields := func(line string, want ...string) {
		t.Helper()
		out, status := s.do(line)
		var v any
		if err := json.Unmarshal([]byte(out), &v); status != 0 || err != nil {
			t.Fatalf("%s: exit status %d, %v:\n%s", line, status, err, out)
		}
		for _, path := range want {
			if !has(v, strings.Split(path, ".")) {
				t.Errorf("%s: no %s in\n%s", line, path, out)
			}
		}
	}
	s.do("truncate -s 128M ssd; truncate -s 64M disk")
	fields("ubcache format ssd --json", "name", "uuid", "device", "size_bytes", "buckets")
	fields("ubcache start --no-ublk --json", "0.name", "0.pid", "0.running", "0.devices")
	fields("ubcache attach disk --json", "name", "mode", "settings.dirty-max", "identity.size_bytes")
	fields("ubcache set disk mode=writeback --json", "mode")
	fields("ubcache status --json", "0.cache.dirty_bytes", "0.devices.0.name", "0.devices.0.dirty_bytes")
	fields("ubcache stats --json", "0.cache.ssd_write_bytes", "0.devices.disk.hit_ratio")
	fields("ubcache scrub disk --json", "0.name", "0.complete", "0.bad", "0.differs", "0.next", "0.checked_blocks")
	fields("ubcache bad --json", "0.name", "0.ranges", "0.bytes")
	fields("ubcache flush disk --json", "0.dirty_bytes")
	fields("ubcache detach disk --json", "name", "state")
	fields("ubcache stop --json", "0")
	fields("ubcache status --json", "0.running")
	fields("ubcache check main --json", "clean", "problems", "cached_blocks")
	fields("ubcache dump main --json", "uuid", "backings", "epoch", "superblocks.1.sequence", "next_record")
	fields("ubcache salvage main --json", "damage", "unknown_blocks", "devices")
	fields("ubcache features --json", "kernel", "features.0.present")
}

func has(v any, path []string) bool {
	if len(path) == 0 {
		return true
	}
	switch v := v.(type) {
	case map[string]any:
		next, ok := v[path[0]]
		return ok && has(next, path[1:])
	case []any:
		var i int
		_, err := fmt.Sscan(path[0], &i)
		return err == nil && i < len(v) && has(v[i], path[1:])
	}
	return false
}
