package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"ubcache/attrs"
	"ubcache/attrs/client"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// ioFlags are those of both directions.
type ioFlags struct {
	offset, length  string
	attrs           string
	channel, device string
	data            string // file to read from or to write to
	fua, explain    bool
	count           int
}

func ioCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "io",
		Short: "Read or write with attributes, and show what became of them",
		Long: `Io issues single requests on a device or file, each with the same attributes, and shows the answers. It
takes the best channel that there is and says which: shared memory through the block device, the
direct ring, or plain I/O, of which nobody handles any attribute.

Attributes are separated by commas:

  hint=bypass           default, cache, bypass, once, pin, unpin, evict, prefetch
  mode=writethrough     writethrough, writeback, writearound
  prio=rt/2             class rt, be or idle, and level 0 to 7
  checksum=crc32c       xxh64, crc32c or crc64-nvme: return checksums; with :HEX[:HEX…] verify them
  lifetime=short        none, short, medium, long, extreme
  tenant=7              or cgroup:4242
  deadline=500us        us, ms, s
  timing                return times
  trace=0xfeed          appears in ubcache trace
  0xf001=c0ffee         an id without a name
  required:hint         fail if hint is not handled`,
	}
	cmd.AddCommand(ioDirection(g, client.Read), ioDirection(g, client.Write))
	return cmd
}

func ioDirection(g *globals, kind client.Kind) *cobra.Command {
	f := ioFlags{}
	cmd := &cobra.Command{
		Use:   "read [PATH]",
		Short: "Read from a device or file",
		Args:  args(cobra.MaximumNArgs(1)),
		Example: `  ubcache io read /dev/ubcache/data --length 64K --attrs hint=once,timing
  ubcache io read --device data --length 4K --attrs checksum=crc32c --json`,
		RunE: func(cmd *cobra.Command, a []string) error {
			return f.run(cmd, g, kind, append(a, "")[0])
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.offset, "offset", "0", "where, in bytes")
	fs.StringVar(&f.length, "length", "4K", "how much, in bytes")
	fs.StringVar(&f.attrs, "attrs", "", "attributes (see ubcache io --help)")
	fs.StringVar(&f.channel, "channel", "auto", "auto, shared, direct or plain")
	fs.StringVar(&f.device, "device", "", "a device of a cache by its name, instead of PATH")
	fs.IntVar(&f.count, "count", 1, "requests, one after the other")
	fs.BoolVar(&f.explain, "explain", false, "show which source won for each attribute")
	if kind == client.Read {
		fs.StringVar(&f.data, "output", "", "file for what was read; - for standard output")
		return cmd
	}
	cmd.Use, cmd.Short = "write [PATH]", "Write to a device or file"
	cmd.Example = `  ubcache io write /dev/ubcache/data --offset 1M --input page.bin --attrs mode=writethrough`
	fs.StringVar(&f.data, "input", "", "file to write; - for standard input [zeroes]")
	fs.BoolVar(&f.fua, "fua", false, "durable when it is done")
	return cmd
}

// ioResult is what became of one request.
type ioResult struct {
	Path    string         `json:"path"`
	Channel string         `json:"channel"`
	Why     string         `json:"channel_reason,omitempty"`
	Op      string         `json:"op"`
	Off     int64          `json:"offset"`
	Bytes   int            `json:"bytes"`
	Error   string         `json:"error,omitempty"`
	Attrs   *attrs.Set     `json:"attributes"`
	Results *attrs.Results `json:"results"`
}

func (f *ioFlags) run(cmd *cobra.Command, g *globals, kind client.Kind, path string) error {
	set, off, n, o, err := f.parse(g, kind, path)
	if err != nil {
		return err
	}
	what := map[client.Kind]string{client.Read: "read", client.Write: "write"}[kind]
	name := path
	if name == "" {
		name = f.device
	}
	d, err := client.Open(path, o)
	if err != nil {
		return report.Wrap(what+" "+name, err, "")
	}
	defer d.Close()
	buf, err := d.Alloc(n)
	if err != nil {
		return report.Wrap(what+" "+name, err, "a request has at most 512 MiB")
	}
	if kind == client.Write {
		if err := f.fill(cmd.InOrStdin(), buf); err != nil {
			return err
		}
	}
	r := ioResult{Path: name, Op: what, Attrs: &set}
	ch, why := d.Channel()
	r.Channel, r.Why = ch.String(), why
	var failed error
	for i := range f.count {
		if err := cmd.Context().Err(); err != nil {
			return report.Fail(what+" "+name, "interrupted", "")
		}
		op := client.Op{Kind: kind, Buf: buf, Off: off + int64(i)*int64(n), FUA: f.fua, Attrs: &set}
		if err := d.Submit(&op); err != nil {
			return report.Wrap(what+" "+name, err, "")
		}
		failed = op.Wait()
		r.Off, r.Bytes, r.Results, r.Error = op.Off, op.N, &op.Results, ""
		if failed != nil {
			r.Error = failed.Error()
		}
		if err := f.show(cmd.OutOrStdout(), g, &r, kind, buf[:op.N]); err != nil {
			return err
		}
		if failed != nil {
			return failure(fmt.Sprintf("%s %s at %d+%d", what, name, op.Off, n), failed)
		}
	}
	return nil
}

// failure says what an error means that attributes make: the kernel's texts for them are about
// something else.
func failure(what string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return report.Wrap(what, err, "")
	}
	switch errno {
	case attrs.ErrnoRefused:
		return report.Fail(what, "a required attribute is not handled", "nothing was done")
	case attrs.ErrnoMismatch:
		return report.Fail(what, "the data does not match its checksum", "")
	case attrs.ErrnoDeadline:
		return report.Fail(what, "the deadline is over", "")
	case attrs.ErrnoInvalid:
		return report.Fail(what, errno.Error(), "it lies outside the device or not in its blocks, or a "+
			"required attribute is invalid")
	}
	return report.Wrap(what, err, "")
}

func (f *ioFlags) parse(g *globals, kind client.Kind, path string) (set attrs.Set, off int64, n int,
	o client.Options, err error,
) {
	if (path == "") == (f.device == "") {
		return set, 0, 0, o, report.Misuse("either PATH or --device says where (see ubcache io read --help)")
	}
	if set, err = attrs.ParseSet(f.attrs); err != nil {
		return set, 0, 0, o, report.Misuse("--attrs: %v", err)
	}
	offset, err := config.ParseSize(f.offset)
	if err != nil {
		return set, 0, 0, o, report.Misuse("--offset: %v", err)
	}
	length, err := config.ParseSize(f.length)
	if err != nil {
		return set, 0, 0, o, report.Misuse("--length: %v", err)
	}
	const most = 512 << 20
	if length <= 0 || length > most {
		return set, 0, 0, o, report.Misuse("--length %s: from 1 byte to 512M", f.length)
	}
	if f.count < 1 {
		return set, 0, 0, o, report.Misuse("--count %d: at least 1", f.count)
	}
	o = client.Options{
		Device: f.device, ReadOnly: kind == client.Read, Depth: 1,
		Bytes: max(int64(length), 1<<20),
	}
	channels := map[string]client.Channel{}
	for _, c := range []client.Channel{client.Auto, client.Shared, client.Direct, client.Plain} {
		channels[c.String()] = c
	}
	var ok bool
	if o.Channel, ok = channels[f.channel]; !ok {
		return set, 0, 0, o, report.Misuse("--channel %q is none of auto, shared, direct, plain",
			f.channel)
	}
	// The sockets are where the configuration says.
	if file, err := g.load(); err == nil {
		_ = os.Setenv(control.EnvRuntimeDir, control.RuntimeDir(file.RuntimeDir))
	}
	return set, int64(offset), int(length), o, nil
}

// fill gets the data of a write; what the input lacks are zeroes.
func (f *ioFlags) fill(stdin io.Reader, buf []byte) error {
	in := stdin
	switch f.data {
	case "":
		return nil
	case "-":
	default:
		file, err := os.Open(f.data)
		if err != nil {
			return report.Wrap("read --input", err, "")
		}
		defer file.Close()
		in = file
	}
	_, err := io.ReadFull(in, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return report.Wrap("read --input", err, "")
	}
	return nil
}

// show prints what became of a request, and gives out what was read. Data on standard output leaves
// room for nothing else there.
func (f *ioFlags) show(w io.Writer, g *globals, r *ioResult, kind client.Kind, data []byte) error {
	if kind == client.Read && f.data != "" {
		if f.data == "-" {
			if _, err := w.Write(data); err != nil {
				return err
			}
			w = os.Stderr
		} else if err := appendFile(f.data, data); err != nil {
			return report.Wrap("write --output", err, "")
		}
	}
	if g.json {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "%s %s at %d, %d bytes, channel %s", r.Op, r.Path, r.Off, r.Bytes, r.Channel)
	if r.Channel == client.Plain.String() {
		fmt.Fprintf(w, " (%s)", r.Why)
	}
	fmt.Fprintln(w)
	return table(w, resultRows(r, f.explain))
}

func appendFile(name string, data []byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}
