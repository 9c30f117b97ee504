// Package control is the conversation between the command and a daemon, over a Unix socket that
// only root may open.
//
// One connection is one command. The client sends a line of JSON, a [Request]; the daemon answers
// with any number of lines that have only "progress", and then one that has "result" or "error":
//
//	→ {"version":1,"command":"detach","args":{"name":"data"}}
//	← {"progress":{"left_bytes":8192,"total_bytes":40960}}
//	← {"result":{"name":"data"}}
//
// A client that hangs up gives up waiting; whether that ends the work is the command's to say.
package control

import (
	"encoding/json"
	"time"

	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/report"
)

// Version is the version of the protocol. A daemon refuses others.
const Version = 1

// Request is what a client sends.
type Request struct {
	Version int             `json:"version"`
	Command string          `json:"command"`
	Args    json.RawMessage `json:"args,omitempty"`
}

// Reply is one line of the answer.
type Reply struct {
	Progress json.RawMessage `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *report.Error   `json:"error,omitempty"`
}

// The commands that a daemon knows.
const (
	CmdStatus = "status" // → Status
	CmdStats  = "stats"  // → Stats
	CmdAttach = "attach" // AttachArgs → Device
	CmdDetach = "detach" // DetachArgs → Progress … Device
	CmdCancel = "cancel" // NameArgs → Device: cancel a detach
	CmdSet    = "set"    // SetArgs → Device
	CmdFlush  = "flush"  // NameArgs → Progress … Device
	CmdReopen = "reopen" // ReopenArgs → Device
	CmdStop   = "stop"   // StopArgs → nothing

	CmdRuleAdd  = "rule add"  // RuleAddArgs → Rule
	CmdRuleList = "rule list" // NameArgs → list of Rule, of one device or of all
	CmdRuleDel  = "rule del"  // RuleArgs → Rule, as it was

	CmdTenantSet  = "tenant set"  // TenantSetArgs → Tenant
	CmdTenantList = "tenant list" // → list of Tenant
	CmdTenantDel  = "tenant del"  // TenantArgs → Tenant, as it was

	CmdTrace = "trace" // TraceArgs → list of Trace

	CmdScrub    = "scrub"    // ScrubArgs → Progress … Scrub
	CmdScrubbed = "scrubbed" // NameArgs → Scrub, what the last scrub has found, perhaps an interrupted one
	CmdBad      = "bad"      // NameArgs → list of Bad, of one device or of all
)

// NameArgs name a backing device.
type NameArgs struct {
	Name string `json:"name"`
}

// AttachArgs ask for a new backing device.
type AttachArgs struct {
	Device string `json:"device"`
	Name   string `json:"name"`
	Header bool   `json:"header,omitempty"`
	Force  bool   `json:"force,omitempty"`
	// UblkID is the number N of /dev/ublkbN; -1 for any free one.
	UblkID int `json:"ublk_id"`
	// Integrity gives the block device integrity metadata; it cannot be changed later.
	Integrity bool              `json:"integrity,omitempty"`
	Settings  map[string]string `json:"settings,omitempty"`
}

// DetachArgs ask to give up a backing device.
type DetachArgs struct {
	Name string `json:"name"`
	// Force gives up dirty data that cannot be written back.
	Force bool `json:"force,omitempty"`
	// NoWait begins and returns; a later detach, or a restart, goes on with it.
	NoWait bool `json:"no_wait,omitempty"`
}

// ReopenArgs ask to bring back a backing device that is gone.
type ReopenArgs struct {
	Name string `json:"name"`
	// Device is where it is now; empty: to be found.
	Device string `json:"device,omitempty"`
}

// SetArgs change settings: mode, sequential-cutoff, dirty-target, dirty-max, writeback-delay,
// pin-quota, ordered, ordered-age, ordered-max, ssd-loss, ssd-loss-hold, backing-loss.
type SetArgs struct {
	Name     string            `json:"name"`
	Settings map[string]string `json:"settings"`
}

// RuleAddArgs ask for a new rule.
type RuleAddArgs struct {
	Name string      `json:"name"` // of the backing device
	Rule config.Rule `json:"rule"`
	// Before is the name or number of the rule before which it goes; empty: behind all.
	Before string `json:"before,omitempty"`
}

// RuleArgs name a rule of a backing device, by its name or number.
type RuleArgs struct {
	Name string `json:"name"`
	Rule string `json:"rule"`
}

// Rule is a rule of a backing device as it is applied.
type Rule struct {
	Device string `json:"device"`
	// Number is its place in the order, from 1 on.
	Number int `json:"number"`
	config.Rule
	// Extents, Bytes and Files are what it has resolved to: the runs of bytes of the device for which
	// it holds, their sum, and of how many files they are. Resolving is set until that is known.
	Extents   int   `json:"extents,omitempty"`
	Bytes     int64 `json:"bytes,omitempty"`
	Files     int   `json:"files,omitempty"`
	Resolving bool  `json:"resolving,omitempty"`
	// Requests and RequestBytes are what it has matched since the daemon's start.
	Requests     uint64 `json:"requests"`
	RequestBytes uint64 `json:"request_bytes"`
	// Problem is what keeps it from matching all that it should; empty if nothing does.
	Problem string `json:"problem,omitempty"`
}

// TenantSetArgs limit a tenant; a limit that is nil stays as it is, one of 0 ends.
type TenantSetArgs struct {
	ID    string       `json:"id"` // as config.Tenant has it
	Quota *config.Size `json:"quota_bytes,omitempty"`
	Share *config.Size `json:"share_bytes,omitempty"`
}

// TenantArgs name a tenant.
type TenantArgs struct {
	ID string `json:"id"` // as config.Tenant has it
}

// Tenant is a tenant that has limits or cached blocks.
type Tenant struct {
	Cache string `json:"cache"`
	// ID is how the configuration names the tenant, or as Tenant if it does not. Tenant is the number,
	// or "cgroup:" and the cgroup's id; empty if that is not known.
	ID     string `json:"id"`
	Tenant string `json:"tenant,omitempty"`
	// QuotaBytes and ShareBytes are 0 for no limit.
	QuotaBytes  int64 `json:"quota_bytes"`
	ShareBytes  int64 `json:"share_bytes"`
	CachedBytes int64 `json:"cached_bytes"`
	// Problem is what keeps the limits from being applied; empty if nothing does.
	Problem string `json:"problem,omitempty"`
}

// TraceArgs ask for requests that carried a trace id.
type TraceArgs struct {
	ID *uint64 `json:"id,omitempty"` // only those with this one
}

// Trace is a request that carried a trace id.
type Trace struct {
	// ID is in hexadecimal, "0x2a": not every reader of JSON keeps a number of 64 bits.
	ID string `json:"id"`
	cache.Trace
}

// ScrubArgs ask to verify what is cached of a backing device.
type ScrubArgs struct {
	Name string `json:"name"`
	// Rate bounds the cached bytes per second that are looked at; 0: no bound.
	Rate int64 `json:"rate,omitempty"`
	// Restart begins at the start of the device, where an earlier scrub was interrupted, too.
	Restart bool `json:"restart,omitempty"`
	// NoBacking only verifies checksums, Fix drops copies that the backing device does not have.
	NoBacking bool `json:"no_backing,omitempty"`
	Fix       bool `json:"fix,omitempty"`
}

// Scrub is what a scrub has found.
type Scrub struct {
	Name          string `json:"name"`
	BackingDevice string `json:"backing_device,omitempty"`
	cache.ScrubReport
}

// Bad is the dirty data of a device that the SSD has lost.
type Bad struct {
	Cache  string       `json:"cache"`
	Name   string       `json:"name"`
	Bytes  int64        `json:"bytes"`
	Ranges cache.Ranges `json:"ranges"` // in bytes of the cached device, whole sectors of 512
	// Truncated: there are more.
	Truncated bool `json:"truncated,omitempty"`
}

// StopArgs ask the daemon to end.
type StopArgs struct {
	// Force stops devices that are in use: their users see I/O errors.
	Force bool `json:"force,omitempty"`
}

// Progress tells how far something long is.
type Progress struct {
	What       string `json:"what"`
	LeftBytes  int64  `json:"left_bytes"`
	TotalBytes int64  `json:"total_bytes"`
}

// ProgressFunc is told how far a command is.
type ProgressFunc = func(Progress)

// Device is a cached device as it is served.
type Device struct {
	cache.BackingStatus
	// BackingDevice is what is behind it, Path the block device to use, Link a name that stays.
	BackingDevice string `json:"backing_device,omitempty"`
	Path          string `json:"path,omitempty"`
	Link          string `json:"link,omitempty"`
	// Service is served, missing (with Problem) or offline.
	Service  string `json:"service"`
	Problem  string `json:"problem,omitempty"`
	UsedBy   string `json:"used_by,omitempty"`
	CopyMode string `json:"copy_mode,omitempty"`
	// Integrity: the block device has integrity metadata.
	Integrity bool `json:"integrity,omitempty"`
	// SharedMemory is how many clients' memory is registered with the block device.
	SharedMemory int            `json:"shared_memory,omitempty"`
	Queues       int            `json:"queues,omitempty"`
	DataOff      int64          `json:"data_offset_bytes"`
	Identity     DeviceIdentity `json:"identity"`
	// Rules is the number of its rules, RuleProblems what is wrong with some of them.
	Rules        int               `json:"rules,omitempty"`
	RuleProblems []string          `json:"rule_problems,omitempty"`
	Settings     map[string]string `json:"settings"`
}

// DeviceIdentity is what was recorded of a backing device.
type DeviceIdentity struct {
	SizeBytes int64  `json:"size_bytes"`
	Serial    string `json:"serial,omitempty"`
	FSType    string `json:"fs_type,omitempty"`
	FSUUID    string `json:"fs_uuid,omitempty"`
}

// Status is the state of a daemon and its cache.
type Status struct {
	Name    string    `json:"name"`
	Running bool      `json:"running"`
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started,omitzero"`
	SSD     string    `json:"ssd"`
	Config  string    `json:"config"`
	// KernelAttributes says whether attributes that the kernel knows of a request are seen
	// (priority and hint of unmodified programs, lifetime, cgroup): "on", or what is missing.
	KernelAttributes string       `json:"kernel_attributes,omitempty"`
	Cache            cache.Status `json:"cache"`
	Devices          []Device     `json:"devices"`
}

// Stats are the counters of a cache.
type Stats struct {
	Name    string                  `json:"name"`
	Seconds float64                 `json:"seconds"` // since the daemon was started
	Cache   cache.Stats             `json:"cache"`
	Devices map[string]BackingStats `json:"devices"`
}

// BackingStats are the counters of a backing device, with its hit ratio.
type BackingStats struct {
	cache.BackingStats
	HitRatio float64 `json:"hit_ratio"`
}
