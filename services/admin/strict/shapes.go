package strict

// The shapes: id and str are text, ts a timestamp, count an integer that is not negative, num any number, obj an object of
// whatever members, strs one whose values are all text. A name of this table is an object with at least its members; page
// and [] are lists of what follows. A shape that ends in ? may be null, a member that ends in - may be left out.

var objects = read(`
message
	message str
pushed
	message str
	validationResponse- str
page
	data []any
	pagination pagination
pagination
	limit count
	has_more bool
	next_cursor str?

connector
	connector_id id
	name str
	provider enum gcs s3 azure dir
	status enum active testing failed disabled
	scopes []enum import export
	import_mode enum all new_only
	export_base_path,bucket,region,gcp_project_id,storage_account,container str?
	created_at,updated_at,last_tested_at ts?
	last_test_result enum success failed?
	last_test_error,user_project str?
	poll bool
test
	success bool
	error_message str?
	steps []tried
tried
	what,found str
	ok bool
announcements
	subscription str?
	done bool
	steps []announcement
announcement
	what,command str
	done bool
	error- str
file
	path,name str
	size_bytes count
	last_modified ts
	content_type str?
	extension str

index
	index_id,user_id id
	name str
	description str?
	sort_order int?
	is_default bool
	created_at ts
index-deletion
	index_id,deletion_id id
	status enum draining deleting deleted
	retry_after_seconds count?
	message str
video-deletion
	video_id,deletion_id id
	status enum draining deleting deleted
	retry_after_seconds count?
	message str

marker
	marker_id,color,note,updated_at str?
media-run
	run_id id
	prompt_id id?
	status str
	total_segments,pending_segments,processing_segments,successful_segments,failed_segments count
	segments []obj
	created_at,updated_at ts?
	attempt_id id?
video
	video_id id
	title,video_uri str
	status enum not_processed processing processed failed
	media_type enum video audio image
	duration_seconds num?
	metadata_keys []str?[]
	processing_status []media-run?[]
	marker marker
	created_at,updated_at ts
video-details
	+ video
	gif_data,first_thumbnail str?
video-status
	video_id id
	status enum not_processed processing processed failed
	processing_status []media-run?[]
video-segments
	video_id id
	run_id- id?
	segments []obj
segment
	segment_id,video_id id

prompt
	prompt_id,user_id id
	name,description,prompt_text str
	json_schema obj
	video_level video-level?
	semantic_indexing- semantic-indexing
	execution_config-,selection_filter- obj
	is_active bool
	created_at ts
video-level
	instructions_text str
	included_segment_fields []str
	json_schema obj
semantic-indexing
	disabled_segment_fields-,disabled_video_level_fields- []str
prompts
	prompts []prompt
	total_count,active_count count
prompt-usage
	prompt_id id
	name str
	is_active,is_in_use bool
	created_at ts
	schema_properties_count count
schema-test
	valid bool
	validated_data any?
	error str?
	message str

progress
	total_files,imported,failed,skipped,bytes_transferred count
	current_file str?
job
	job_id,connector_id,target_index_id id
	source_prefix,file_pattern str
	recursive bool
	status enum pending scanning importing completed failed cancelled
	progress progress
	video_ids []id
	failed_files,skipped_files []strs
	created_at,started_at,completed_at ts?
	error_message str?
	import_mode enum all new_only
	automation_id,retry_of id?
	origin enum manual automation attachment
job-file
	path,version str
	connector_id id
	size_bytes,bytes_transferred,attempts count
	state enum queued importing imported skipped failed
	reason,error str?
	video_id id?
	media_type enum video audio image?
	duration_seconds num?
	started_at,ended_at ts?

automation
	automation_id,index_id,connector_id id
	enabled,paused,recursive,include_existing bool
	source_prefix,file_pattern,debounce_interval str
	prompt_preset preset?
	created_at,updated_at ts
	last_triggered_at,pending_since,next_fire_at ts?
	last_job_id,last_run_id id?
	last_error str?
	pending_files,pending_bytes count
preset
	prompt_id id
	video_segmentation_type enum smart fixed content_aware
	audio_segmentation_type enum fixed content_aware
	video_segment_duration,audio_segment_duration count?
	processing_model str?
	enable_transcription,enable_image_embedding bool
window
	opened_at,last_arrival_at,deadline ts
	seconds_left,files,bytes count
	held bool
watched
	automation automation
	window window?
planned-file
	path,version str
	size_bytes count
	last_modified ts
	waiting bool
plan
	automation_id,index_id,connector_id id
	enabled,paused,complete bool
	matched_files,settled_files,importing_files,bytes count
	files []planned-file
export-automation
	automation_id,index_id,destination_connector_id id
	enabled,paused bool
	destination_subpath str?
	format enum json jsonl csv
	created_at,updated_at ts
	pending_since,last_triggered_at ts?
	last_export_id id?
	last_error str?

run-context
	type enum videos index
	index_id id?
	video_ids- []id
	media_count count
stop-state
	requested_at,observed_at,completed_at ts?
	requested_by,mode str?
run
	run_id,prompt_id,executed_by id
	prompt_name,prompt_type str
	executed_at ts
	status enum pending processing completed completed_with_failures failed cancelled
	run_context run-context
	total_videos,completed_videos,failed_videos,partial_videos,cancelled_videos count
	total_audios,completed_audios,failed_audios,partial_audios,cancelled_audios count
	total_images,completed_images,failed_images,partial_images,cancelled_images count
	total_segments,completed_segments count
	field_extraction_failures,transcription_failures,image_embedding_failures count
	field_extraction_succeeded,transcription_succeeded,image_embedding_succeeded bool?
	video_segmentation_type enum smart fixed content_aware
	audio_segmentation_type enum fixed content_aware
	image_segmentation_type enum image
	video_segment_duration,audio_segment_duration count?
	created_new_segments,enable_transcription,enable_image_embedding,video_level_enabled bool
	processing_model str?
	total_video_seconds num
	video_level_total_items,video_level_completed_items,video_level_failed_items,video_level_partial_items count
	billing_estimated_mt,billing_actual_mt num
	billing_status,billing_error,error_message str?
	stop_state stop-state
	marker marker
	job_id id?
	started_at,completed_at ts?
estimate
	estimated_mt,current_balance_mt num
	breakdown obj
	sufficient_balance bool
result
	segment_id,run_id,prompt_id,video_id id
	executed_at ts
	metadata obj
	metadata_text str
	result_type enum segment
	field_extraction_succeeded,thumbnail_available,gif_available bool
	error_message str?
video-result
	run_id,prompt_id,video_id id
	executed_at ts
	status enum pending processing completed failed cancelled
	metadata obj
	metadata_text str
	result_type enum video
	error_message str?
operation-counts
	field_extraction,transcription,image_embedding,processing count
failed-segment
	segment_id,video_id id
	status enum failed
	start_time,end_time num?
	completed_at ts
	error_message,failure_message,failure_stage str
	failed_operations []str
	retryable bool
failed-video
	video_id id
	failed_segments count
	operation_counts operation-counts
	segments []failed-segment
failures
	run_id id
	status enum pending processing completed completed_with_failures failed cancelled
	videos_with_failures,failed_segments count
	operation_counts operation-counts
	videos []failed-video
segment-retry
	run_id,retry_id,video_id,segment_id id
	status str
	created_at ts
workflow-run
	run_id id
	run run
	prompt prompt
	status_url,results_url str
	prompt_created_inline bool
workflow-results
	run_id id
	status enum pending processing completed completed_with_failures failed cancelled
	result_level enum segment video
	selection_summary obj?
	filtered page?
	unfiltered page

webhook
	webhook_id id
	name,url str
	events []str
	index_ids []id?[]
	status enum active paused disabled
	failure_count count
	last_failure_at,last_success_at,created_at,updated_at ts?
	metadata obj?
new-webhook
	+ webhook
	secret str
rotated
	webhook_id id
	new_secret str
webhook-test
	success bool
	status_code count?
	error str?
delivery
	delivery_id,webhook_id id
	event_type str
	status enum pending processing retrying delivered failed
	attempts count
	last_attempt_at,next_retry_at,created_at,completed_at ts?
	response_status_code count?
	response_body,error_message str?
	payload obj?

export closed
	export_id,target_id id
	export_type enum index prompt_run import_job
	status enum pending processing completed failed
	queue_status enum queued leased running failed succeeded dead_letter?
	attempts,max_attempts count
	created_at,available_at,started_at,completed_at,updated_at ts?
	file_size_bytes count?
	error_message,last_error str?
	destination_type enum download connector
	destination_connector_id id?
	destination_base_path,destination_subpath,destination_uri,gcs_uri,download_url str?
	export_params export-params?
export-params closed
	prompt_run_ids []id?[]
	destination_connector_id- id?
	destination_base_path-,destination_subpath- str?
made-export
	export_id id
	status enum pending processing completed failed
download-link closed
	export_id id
	status enum pending processing completed failed
	destination_type enum download connector
	destination_connector_id id?
	download_url str?

limits
	user_id,plan_id id
	categories obj
usage
	user_id id
	period_start,period_end ts
	metrics,model_usage,auth_usage obj
	totals usage-totals
usage-totals
	total_tokens,total_searches count
usage-history
	user_id id
	periods []obj
usage-breakdown
	user_id id
	period_start,period_end ts
	breakdown obj
	totals usage-totals

dead
	dead_id id
	service,consumer,stream,subject,reason str
	stage enum receive decode handle panic deliver
	delivered,data_bytes count
	at ts
	data str?
	cut bool
replayed
	dead_id id
	subject,message str
interest
	automation_id,index_id id
	matches bool
	reason,outcome str
step
	at ts
	step enum notification scan arrival job file media run dead
	text str
	version str?
	automation_id,index_id,job_id,video_id,run_id,dead_id id?
explained
	version str
	size_bytes count
	modified_at ts?
explanation
	connector_id id
	path,verdict str
	object explained?
	storage_error str?
	automations []interest
	steps []step
	notifications_searched_since ts?
`)

// routes are what each route answers with 2xx and a JSON body.
var routes = map[string]string{
	"POST /connectors/dir":          "connector",
	"POST /connectors/gcs":          "connector",
	"POST /connectors/s3":           "connector",
	"POST /connectors/azure":        "connector",
	"GET /connectors":               "[]connector",
	"GET /connectors/{}":            "connector",
	"PATCH /connectors/{}":          "connector",
	"DELETE /connectors/{}":         "message",
	"POST /connectors/{}/test":      "test",
	"POST /connectors/{}/notify":    "announcements",
	"POST /connectors/{}/browse":    "[]file",
	"POST /notifications/{}":        "pushed",
	"OPTIONS /notifications/{}":     "message",
	"POST /indexes":                 "index",
	"GET /indexes":                  "[]index",
	"GET /indexes/{}":               "index",
	"DELETE /indexes/{}":            "index-deletion",
	"GET /indexes/{}/deletion":      "index-deletion",
	"GET /indexes/{}/videos":        "page video",
	"GET /indexes/{}/prompt-runs":   "page run",
	"GET /automations":              "page watched",
	"GET /dead":                     "page dead",
	"POST /dead/{}/replay":          "replayed",
	"DELETE /dead/{}":               "message",
	"GET /explain":                  "explanation",
	"GET /videos/{}":                "video",
	"DELETE /videos/{}":             "video-deletion",
	"GET /videos/{}/deletion":       "video-deletion",
	"GET /videos/{}/segments":       "page segment",
	"GET /videos/{}/prompt-runs":    "[]run",
	"POST /videos/batch":            "[]video-details",
	"POST /videos/batch/status":     "[]video-status",
	"POST /videos/batch/segments":   "[]video-segments",
	"GET /playground/videos":        "page video",
	"POST /prompts":                 "prompt",
	"GET /prompts":                  "prompts",
	"GET /prompts/{}":               "prompt",
	"PUT /prompts/{}":               "prompt",
	"DELETE /prompts/{}":            "message",
	"GET /prompts/{}/usage":         "prompt-usage",
	"POST /prompts/test-schema":     "schema-test",
	"POST /import-jobs":             "job",
	"GET /import-jobs":              "[]job",
	"GET /import-jobs/{}":           "job",
	"GET /import-jobs/{}/files":     "page job-file",
	"POST /import-jobs/{}/cancel":   "job",
	"POST /prompt-runs/execute":     "run",
	"POST /prompt-runs/estimate":    "estimate",
	"GET /prompt-runs":              "[]run",
	"GET /prompt-runs/{}":           "run",
	"POST /prompt-runs/{}/cancel":   "run",
	"GET /prompt-runs/{}/results":   "page result",
	"GET /prompt-runs/{}/llm-calls": "[]obj",
	"GET /webhooks/events":          "[]str",
	"POST /webhooks":                "new-webhook",
	"GET /webhooks":                 "[]webhook",
	"GET /webhooks/{}":              "webhook",
	"PATCH /webhooks/{}":            "webhook",
	"DELETE /webhooks/{}":           "message",
	"POST /webhooks/{}/test":        "webhook-test",
	"GET /exports":                  "[]export",
	"GET /exports/{}":               "export",
	"POST /exports/index/{}":        "made-export",
	"POST /exports/prompt-run/{}":   "made-export",
	"POST /exports/import-job/{}":   "made-export",
	"GET /rate-limit/status":        "limits",
	"POST /rate-limit/refresh":      "limits",
	"GET /usage":                    "usage",
	"GET /usage/history":            "usage-history",
	"GET /usage/details":            "[]obj",
	"GET /usage/breakdown":          "usage-breakdown",
	"GET /usage/metric-types":       "[]obj",
	"POST /workflow/process":        "workflow-run",

	"GET /indexes/{}/automations/import":         "automation",
	"PUT /indexes/{}/automations/import":         "automation",
	"POST /indexes/{}/automations/import/pause":  "automation",
	"POST /indexes/{}/automations/import/resume": "automation",
	"GET /indexes/{}/automations/import/plan":    "plan",
	"POST /indexes/{}/automations/import/flush":  "watched",
	"POST /indexes/{}/automations/import/extend": "watched",
	"POST /indexes/{}/automations/import/drop":   "watched",
	"GET /indexes/{}/automations/export":         "export-automation",
	"PUT /indexes/{}/automations/export":         "export-automation",
	"POST /indexes/{}/automations/export/pause":  "export-automation",
	"POST /indexes/{}/automations/export/resume": "export-automation",

	"POST /import-jobs/{}/retry-failed":                    "job",
	"POST /import-jobs/{}/files/retry":                     "job",
	"POST /import-jobs/{}/prompt-run":                      "run",
	"GET /prompt-runs/{}/videos/{}/video-result":           "video-result",
	"GET /prompt-runs/{}/failed-segments":                  "failures",
	"POST /prompt-runs/{}/videos/{}/segments/{}/retry":     "segment-retry",
	"GET /prompt-runs/{}/videos/{}/segments/{}/retries/{}": "segment-retry",
	"GET /workflow/runs/{}/results":                        "workflow-results",
	"POST /webhooks/{}/rotate-secret":                      "rotated",
	"GET /webhooks/{}/deliveries":                          "[]delivery",
	"GET /webhooks/deliveries/{}":                          "delivery",
	"POST /webhooks/deliveries/{}/retry":                   "delivery",
	"POST /exports/{}/download-url":                        "download-link",
}
