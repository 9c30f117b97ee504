package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

const tenantHelp = `A tenant is on whose account a request goes: the attribute tenant of the request, or the cgroup of a
program where the kernel tells of it. What a tenant wrote or read into the cache last is on its account.

A tenant is named by a number (7), by a cgroup's id (cgroup:4242), or by the path of a cgroup
(cgroup:/sys/fs/cgroup/batch.slice), whose id is looked up now, at each start, and when it has changed.
Cgroups below it are tenants of their own.

Limits take effect at once and are written to the configuration.`

func tenantCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tenant",
		Short: "Limit how much of the cache a tenant may have",
		Long:  tenantHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tenantSetCommand(g), tenantListCommand(g), tenantDelCommand(g))
	return cmd
}

func tenantSetCommand(g *globals) *cobra.Command {
	var cache string
	var quota, share config.Size
	cmd := &cobra.Command{
		Use:   "set TENANT",
		Short: "Limit a tenant, or change its limits",
		Long: `Set limits what of a tenant's data is in the cache.

Requests that would go beyond --quota are served, but what they read or write does not enter the cache.
Up to --share a tenant competes for the cache with all others; what it has above that is evicted first.
A limit that is not given stays as it is, 0 ends it. Sizes are rounded up to blocks of 4096 bytes. What is
in the cache already, or is above a lowered quota, stays until it is evicted.`,
		Example: `  ubcache tenant set 7 --quota 10G --share 5G
  ubcache tenant set cgroup:/sys/fs/cgroup/batch.slice --quota 1G`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			req := control.TenantSetArgs{}
			if cmd.Flags().Changed("quota") {
				req.Quota = &quota
			}
			if cmd.Flags().Changed("share") {
				req.Share = &share
			}
			if req.Quota == nil && req.Share == nil {
				return report.Misuse("nothing to set: --quota, --share or both (see %s --help)",
					cmd.CommandPath())
			}
			var err error
			if req.ID, err = tenantID(a[0]); err != nil {
				return err
			}
			return changeTenant(cmd, g, cache, control.CmdTenantSet, req, limitsOf)
		},
	}
	cmd.Flags().StringVar(&cache, "cache", "", "the cache [the only one]")
	cmd.Flags().Var(&quota, "quota", "how much may be cached; 0 for no limit")
	cmd.Flags().Var(&share, "share", "up to how much it competes as an equal; 0 for no limit")
	return cmd
}

func tenantDelCommand(g *globals) *cobra.Command {
	var cache string
	cmd := &cobra.Command{
		Use:   "del TENANT",
		Short: "End the limits of a tenant",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			id, err := tenantID(a[0])
			if err != nil {
				return err
			}
			return changeTenant(cmd, g, cache, control.CmdTenantDel, control.TenantArgs{ID: id},
				func(*control.Tenant) string { return "no limits" })
		},
	}
	cmd.Flags().StringVar(&cache, "cache", "", "the cache [the only one]")
	return cmd
}

// tenantID is a tenant as the configuration names it; a path may be relative on the command line.
func tenantID(text string) (string, error) {
	if path, ok := strings.CutPrefix(text, "cgroup:"); ok && strings.Contains(path, "/") {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		text = "cgroup:" + abs
	}
	id, err := config.TenantID(text)
	if err != nil {
		return "", report.Misuse("%v", err)
	}
	return id, nil
}

// changeTenant sends a command that changes a tenant, and says what the tenant has then.
func changeTenant(cmd *cobra.Command, g *globals, cache, command string, req any,
	has func(*control.Tenant) string,
) error {
	file, err := g.load()
	if err != nil {
		return err
	}
	name, err := one(file, cache)
	if err != nil {
		return err
	}
	var t control.Tenant
	if err := call(cmd.Context(), file, name, command, req, &t, nil); err != nil {
		return err
	}
	if g.json {
		return printJSON(cmd.OutOrStdout(), t)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "tenant %s: %s\n", tenantName(&t), has(&t))
	return err
}

func limitsOf(t *control.Tenant) string {
	return "quota " + limit(t.QuotaBytes) + ", share " + limit(t.ShareBytes)
}

func limit(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return config.Size(bytes).String()
}

// tenantName is how a tenant is called, with the id of a cgroup that is called by its path.
func tenantName(t *control.Tenant) string {
	if t.Tenant == "" || t.Tenant == t.ID {
		return t.ID
	}
	return fmt.Sprintf("%s (%s)", t.ID, t.Tenant)
}

func tenantListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "list [CACHE]…",
		Short: "Show the tenants that have limits or cached data",
		Long: `List shows quota, share and what is cached of each tenant. What was in the cache before the daemon's
start is on nobody's account.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			file, err := g.load()
			if err != nil {
				return err
			}
			picked, err := pick(file, names)
			if err != nil {
				return err
			}
			all := []control.Tenant{}
			for _, name := range picked {
				var list []control.Tenant
				err := call(cmd.Context(), file, name, control.CmdTenantList, nil, &list, nil)
				if err != nil && (len(names) > 0 || len(picked) == 1 ||
					report.CodeOf(err) != report.NotRunning) {
					return err
				}
				all = append(all, list...)
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printTenants(cmd.OutOrStdout(), all)
		},
	}
}

func printTenants(w io.Writer, list []control.Tenant) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no tenants (ubcache tenant set limits one)")
		return err
	}
	rows := [][]string{{"CACHE", "TENANT", "QUOTA", "SHARE", "CACHED", "PROBLEM"}}
	for i := range list {
		t := &list[i]
		rows = append(rows, []string{
			t.Cache, tenantName(t), limit(t.QuotaBytes), limit(t.ShareBytes), human(t.CachedBytes),
			orDash(t.Problem),
		})
	}
	return table(w, rows)
}
